#!/bin/sh
# Random passwords for docker-compose.yml, each made once: what exists is left alone.
#
#   deploy/make-secrets.sh [FOLDER]       FOLDER: deploy/secrets by default
#
# The folder is closed to everybody else on this host. The files in it are not: a container gets each of them as it is,
# and its user there is not yours.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
for name in ondol_redis_password ondol_database_password ondol_flower_password; do
  file=$folder/$name.txt
  if [ -s "$file" ]; then
    echo "kept $file"
    continue
  fi
  od -An -N 24 -tx1 /dev/urandom | tr -d ' \n' > "$file.new"
  chmod 444 "$file.new"
  mv "$file.new" "$file"
  echo "made $file"
done
