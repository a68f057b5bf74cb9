"""Built-in sentences in English and Korean, by which tokenizers are compared and measured."""

SAMPLE_TEXTS = (
    "The fire burns below, and the whole house stays warm.",
    "How do I reset the password of my account?",
    "Café Müller's 2nd quarter revenue rose by 12.5% to $3,400,000.",
    "please cancel my order #48213 - it has not arrived yet!!",
    "안녕하세요. 오늘은 날씨가 맑고 따뜻합니다.",
    "배송이 너무 늦어서 주문을 취소하고 싶습니다. 어떻게 해야 하나요?",
    "이 영화는 처음부터 끝까지 지루할 틈이 없었다 ㅋㅋㅋ",
    "온돌은 아궁이에 불을 때어 방바닥을 데우는 한국의 난방 방식이다.",
    "서울 Office 2층 회의실에서 3시에 meeting이 있습니다.",
)
