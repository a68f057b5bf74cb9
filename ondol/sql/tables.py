"""All tables of Ondol, the same on SQLite and PostgreSQL.

Times are UTC seconds since the epoch as double floats, by the database's clock (`docs/decisions/0003`). JSON columns
are `json`, not `jsonb`, because texts may hold U+0000. Inputs and results live beside the hot `jobs` rows.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = sa.String(64)
_Time: sa.Double[float] = sa.Double()

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("name", sa.String(96), nullable=False, unique=True),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("webhook_secret", sa.String(128)),
    sa.Column("weight", sa.Double, nullable=False, default=1.0, server_default="1"),
    sa.Column("max_queued_jobs", sa.BigInteger),
    sa.Column("max_queued_tokens", sa.BigInteger),
)

shares = sa.Table(
    "shares",
    metadata,
    sa.Column("project_id", _Id, primary_key=True),
    sa.Column("priority", sa.String(16), primary_key=True),
    sa.Column("served", sa.Double, nullable=False),
    sa.Column("rung_at", _Time, nullable=False),
)
"""What each project was given of a class while others waited too: tokens by weight (decision 17)."""

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("is_admin", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("revoked_at", _Time),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("version_id", _Id),
    sa.Column("model_ref", sa.String(128)),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("job_metadata", sa.JSON, nullable=False),
    sa.Column("num_inputs", sa.Integer, nullable=False),
    sa.Column("num_done", sa.Integer, nullable=False, default=0),
    sa.Column("estimated_tokens", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("run_after", _Time, nullable=False),
    sa.Column("deadline_at", _Time),
    sa.Column("started_at", _Time),
    sa.Column("finished_at", _Time),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("num_retries", sa.Integer, nullable=False, default=0),
    sa.Column("num_lapses", sa.Integer, nullable=False, default=0),
    sa.Column("num_losses", sa.Integer, nullable=False, default=0),
    sa.Column("is_alone", sa.Boolean, nullable=False, default=False),
    sa.Column("message_id", _Id),
    sa.Column("session_id", _Id),
    sa.Column("event_seq", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("is_call", sa.Boolean, nullable=False, default=False),
    sa.Column("task_id", sa.String(128)),
    sa.Column("ignores_result", sa.Boolean),
    sa.Column("webhook", sa.String(2048)),
    sa.Column("is_sharded", sa.Boolean, nullable=False, default=False),
    sa.Column("resolved", sa.JSON(none_as_null=True)),
    sa.Column("pause_requested_at", _Time),
    sa.Column("device_released_at", _Time),
    sa.Column("parent_id", _Id),
    sa.Column("first_input", sa.Integer),
    sa.Column("num_open_shards", sa.Integer),
    sa.Column("input_file_id", _Id),
    sa.Column("batch", sa.JSON(none_as_null=True)),
    sa.Column("inputs_gone_at", _Time),
    sa.Column("results_gone_at", _Time),
    sa.Column("events_gone_at", _Time),
)
# Conditions that a partial index answers carry the state as a literal: a bound value is not seen to imply the index's.
IS_QUEUED = jobs.c.state == sa.literal_column("'queued'", sa.String)
IS_TRAINING = jobs.c.kind == sa.literal_column("'fine-tune'", sa.String)
"""Runs on trainer nodes, in windows of their own."""
IS_UNFINISHED_TRAINING = sa.and_(
    IS_TRAINING, jobs.c.state.in_(sa.literal_column(state, sa.String) for state in ("'queued'", "'validating_files'"))
)
# As text: a Boolean expression is written as `… = 1` for SQLite, which is not seen to imply the index's condition.
IS_NOT_SHARDED = sa.text("NOT jobs.is_sharded")
IS_WAITING = sa.and_(
    IS_QUEUED,
    jobs.c.message_id.is_(None),
    jobs.c.kind != sa.literal_column("'fine-tune'", sa.String),
    IS_NOT_SHARDED,
)
"""Queued for a device, and named by no message; fine-tunes, which wait for trainers, and jobs that are run as their
shards, apart."""
IS_WHOLE = jobs.c.parent_id.is_(None)
"""A job that somebody submitted; no shard, a slice of one's inputs with a row of its own that nobody outside sees
(decision 15)."""
IS_RARE = sa.and_(jobs.c.kind.in_(sa.literal_column(kind, sa.String) for kind in ("'fine-tune'", "'import'")), IS_WHOLE)
"""Of a kind that is few among the others, and is looked for among them."""
IS_FAILED = sa.and_(jobs.c.state == sa.literal_column("'failed'", sa.String), IS_WHOLE)
IS_CANCELLED = sa.and_(jobs.c.state == sa.literal_column("'cancelled'", sa.String), IS_WHOLE)
IS_RUNG = sa.and_(IS_QUEUED, jobs.c.message_id.is_not(None))
"""Queued, and named by a message that nobody has claimed."""
IS_HOLDING_A_DEVICE = sa.and_(
    IS_TRAINING, jobs.c.state == sa.literal_column("'cancelled'", sa.String), jobs.c.device_released_at.is_(None)
)
"""A cancelled fine-tune of which nobody has said that its processes are gone."""

# Fine-tunes that wait are few and wait long: an index of their own keeps them out of the way of the others.
sa.Index(
    "ix_jobs_training",
    jobs.c.run_after,
    jobs.c.id,
    postgresql_where=sa.text("kind = 'fine-tune' AND state IN ('queued', 'validating_files')"),
    sqlite_where=sa.text("kind = 'fine-tune' AND state IN ('queued', 'validating_files')"),
)
sa.Index(
    "ix_jobs_holding_a_device",
    jobs.c.id,
    postgresql_where=sa.text("kind = 'fine-tune' AND state = 'cancelled' AND device_released_at IS NULL"),
    sqlite_where=sa.text("kind = 'fine-tune' AND state = 'cancelled' AND device_released_at IS NULL"),
)
# In the order in which a project's jobs are rung, so that jobs that may run only later are not even looked at.
sa.Index(
    "ix_jobs_waiting",
    jobs.c.priority,
    jobs.c.project_id,
    jobs.c.run_after,
    jobs.c.id,
    postgresql_where=sa.text("state = 'queued' AND message_id IS NULL AND kind != 'fine-tune' AND NOT is_sharded"),
    sqlite_where=sa.text("state = 'queued' AND message_id IS NULL AND kind != 'fine-tune' AND NOT is_sharded"),
)
sa.Index(
    "ix_jobs_finished",
    jobs.c.finished_at,
    postgresql_where=sa.text("finished_at IS NOT NULL AND parent_id IS NULL"),
    sqlite_where=sa.text("finished_at IS NOT NULL AND parent_id IS NULL"),
)
sa.Index(
    "ix_jobs_message",
    jobs.c.message_id,
    postgresql_where=sa.text("message_id IS NOT NULL"),
    sqlite_where=sa.text("message_id IS NOT NULL"),
)
sa.Index(
    "ix_jobs_session",
    jobs.c.session_id,
    postgresql_where=sa.text("session_id IS NOT NULL"),
    sqlite_where=sa.text("session_id IS NOT NULL"),
)
sa.Index(
    "ix_jobs_deadline",
    jobs.c.deadline_at,
    postgresql_where=sa.text("deadline_at IS NOT NULL AND state = 'queued'"),
    sqlite_where=sa.text("deadline_at IS NOT NULL AND state = 'queued'"),
)
sa.Index(
    "ix_jobs_project",
    jobs.c.project_id,
    jobs.c.id,
    postgresql_where=sa.text("parent_id IS NULL"),
    sqlite_where=sa.text("parent_id IS NULL"),
)
for _name, _few in (
    ("ix_jobs_rare", "kind IN ('fine-tune', 'import') AND parent_id IS NULL"),
    ("ix_jobs_failed", "state = 'failed' AND parent_id IS NULL"),
    ("ix_jobs_cancelled", "state = 'cancelled' AND parent_id IS NULL"),
):  # pages of those whom a project looks for among all that it ever had
    sa.Index(_name, jobs.c.project_id, jobs.c.id, postgresql_where=sa.text(_few), sqlite_where=sa.text(_few))
sa.Index(
    "ix_jobs_parent",
    jobs.c.parent_id,
    jobs.c.first_input,
    postgresql_where=sa.text("parent_id IS NOT NULL"),
    sqlite_where=sa.text("parent_id IS NOT NULL"),
)
sa.Index(
    "ix_jobs_batch",
    jobs.c.project_id,
    jobs.c.id,
    postgresql_where=sa.text("batch IS NOT NULL"),
    sqlite_where=sa.text("batch IS NOT NULL"),
)
sa.Index(
    "ix_jobs_input_file",
    jobs.c.input_file_id,
    postgresql_where=sa.text("input_file_id IS NOT NULL"),
    sqlite_where=sa.text("input_file_id IS NOT NULL"),
)
sa.Index(
    "ix_jobs_open_fine_tunes",
    jobs.c.id,
    postgresql_where=sa.text("kind = 'fine-tune' AND finished_at IS NULL"),
    sqlite_where=sa.text("kind = 'fine-tune' AND finished_at IS NULL"),
)
sa.Index(
    "ix_jobs_task",
    jobs.c.project_id,
    jobs.c.task_id,
    unique=True,
    postgresql_where=sa.text("task_id IS NOT NULL"),
    sqlite_where=sa.text("task_id IS NOT NULL"),
)

job_inputs = sa.Table(
    "job_inputs",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("blob_path", sa.String(256)),
    sa.Column("blob_offset", sa.BigInteger),
    sa.Column("blob_size", sa.BigInteger),
    sa.Column("sha256", sa.String(64)),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("manifest_digest", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("is_best", sa.Boolean, nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("deleted_at", _Time),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("session_id", _Id, nullable=False),
    sa.Column("worker", sa.String(128), nullable=False),
    sa.Column("started_at", _Time, nullable=False),
    sa.Column("finished_at", _Time),
    sa.Column("message_id", _Id),
    sa.Column("outcome", sa.String(24)),
    sa.Column("tokens", sa.Integer),
    sa.Column("timings", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("summary", sa.JSON, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("data", sa.LargeBinary),
    sa.Column("blob_path", sa.String(256)),
    sa.Column("sha256", sa.String(64), nullable=False),
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("channel", sa.String(16), primary_key=True),
    sa.Column("id", _Id, nullable=False, unique=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("num_tries", sa.Integer, nullable=False, default=0),
    sa.Column("next_try_at", _Time, nullable=False),
    sa.Column("last_try_at", _Time),
    sa.Column("last_answer", sa.String(512)),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("accepted_at", _Time),
)
sa.Index(
    "ix_notices_waiting",
    notices.c.channel,
    notices.c.next_try_at,
    postgresql_where=sa.text("status = 'waiting'"),
    sqlite_where=sa.text("status = 'waiting'"),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("filename", sa.String(512), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("expires_at", _Time),
)
sa.Index("ix_files_created_at", files.c.created_at)
sa.Index("ix_files_project", files.c.project_id, files.c.id)
sa.Index(
    "ix_files_expires_at",
    files.c.expires_at,
    postgresql_where=sa.text("expires_at IS NOT NULL"),
    sqlite_where=sa.text("expires_at IS NOT NULL"),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("worker", sa.String(128), nullable=False),
    sa.Column("device", sa.String(16), nullable=False),
    sa.Column("device_kind", sa.String(32), nullable=False),
    sa.Column("roles", sa.String(32), nullable=False, default="infer"),
    sa.Column("host", sa.String(128), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("is_ready", sa.Boolean, nullable=False, default=False),
    sa.Column("started_at", _Time, nullable=False),
    sa.Column("renewed_at", _Time, nullable=False),
    sa.Column("expires_at", _Time, nullable=False),
    sa.Column("ended_at", _Time),
    sa.Column("end_reason", sa.String(24)),
    sa.Column("warm", sa.JSON, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger),
    sa.Column("clock_ahead_s", sa.Double),
    sa.Column("silent_since", _Time),
)
sa.Index(
    "ix_sessions_open",
    sessions.c.expires_at,
    postgresql_where=sa.text("ended_at IS NULL"),
    sqlite_where=sa.text("ended_at IS NULL"),
)
sa.Index(
    "ix_sessions_ended_at",
    sessions.c.ended_at,
    postgresql_where=sa.text("ended_at IS NOT NULL"),
    sqlite_where=sa.text("ended_at IS NOT NULL"),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("worker", sa.String(128), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("num_jobs", sa.Integer, nullable=False),
    sa.Column("rung_at", _Time, nullable=False),
    sa.Column("claimed_at", _Time),
    sa.Column("session_id", _Id),
    sa.Column("versions", sa.JSON(none_as_null=True)),
    sa.Column("parent_id", _Id),
    sa.Column("project_id", _Id),
)
sa.Index("ix_messages_window", messages.c.worker, messages.c.priority)

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("project_id", _Id, sa.ForeignKey("projects.id"), nullable=False),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.UniqueConstraint("project_id", "name"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("model_id", _Id, sa.ForeignKey("models.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("task", sa.String(32), nullable=False),
    sa.Column("manifest_digest", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("base_version_id", _Id),
    sa.Column("job_id", _Id),
    sa.Column("attempt", sa.Integer),
    sa.Column("lineage", sa.JSON, nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("deleted_at", _Time),
    sa.UniqueConstraint("model_id", "number"),
)

publish_intents = sa.Table(
    "publish_intents",
    metadata,
    sa.Column("manifest_digest", sa.String(64), primary_key=True),
    sa.Column("created_at", _Time, nullable=False),
)
"""Manifests that somebody is about to write into the store; the row goes when the version is recorded. One that stays
is of a publish that broke off: its manifest is no stranger's, and may be collected."""

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("model_id", _Id, sa.ForeignKey("models.id"), primary_key=True),
    sa.Column("name", sa.String(96), primary_key=True),
    sa.Column("version_id", _Id, sa.ForeignKey("versions.id"), nullable=False),
    sa.Column("updated_at", _Time, nullable=False),
)

alias_history = sa.Table(
    "alias_history",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("model_id", _Id, sa.ForeignKey("models.id"), nullable=False),
    sa.Column("name", sa.String(96), nullable=False),
    sa.Column("version_id", _Id),
    sa.Column("previous_version_id", _Id),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("reason", sa.String(256), nullable=False),
)
sa.Index("ix_alias_history_created_at", alias_history.c.created_at)

version_dtypes = sa.Table(
    "version_dtypes",
    metadata,
    sa.Column("manifest_digest", sa.String(64), primary_key=True),
    sa.Column("device_kind", sa.String(32), primary_key=True),
    sa.Column("engine", sa.String(16), primary_key=True),
    sa.Column("dtype", sa.String(16), nullable=False),
    sa.Column("fidelity", sa.JSON, nullable=False),
    sa.Column("is_packed", sa.Boolean, nullable=False),
    sa.Column("created_at", _Time, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("project_id", _Id, primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Time, nullable=False),
)
sa.Index("ix_idempotency_keys_created_at", idempotency_keys.c.created_at)

leaders = sa.Table(
    "leaders",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("holder", _Id, nullable=False),
    sa.Column("term", sa.Integer, nullable=False),
    sa.Column("expires_at", _Time, nullable=False),
)

repairs = sa.Table(
    "repairs",
    metadata,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("updated_at", _Time, nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("project_id", _Id, primary_key=True),
    sa.Column("model_ref", sa.String(128), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("num_calls", sa.BigInteger, nullable=False),
    sa.Column("num_inputs", sa.BigInteger, nullable=False),
    sa.Column("num_tokens", sa.BigInteger, nullable=False),
)
