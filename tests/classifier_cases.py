"""Queries as people ask them, with the tier and the signals that they should get."""

from typing import NamedTuple


class Case(NamedTuple):
    text: str
    tier: str
    signals: str = ""  # names without order, separated by spaces


HIGH, MEDIUM = "high_complexity_indicator", "medium_complexity_indicator"
QUESTIONS, SENTENCES = "several_questions", "several_sentences"
LIST, CONJUNCTION = "enumeration", "complex_conjunction"
NESTED, CONSTRAINTS = "nested_question", "several_constraints"
COMPARISON, CODE, MATHS = "comparison", "code", "mathematics"

SPEC = [
    Case("What is AI?", "simple"),
    Case("Define Python", "simple"),
    Case("What is machine learning?", "simple"),
    Case("Explain binary search", "medium", MEDIUM),
    Case("How does caching work?", "medium", MEDIUM),
    Case("Help me understand recursion", "medium", MEDIUM),
    Case("Provide a comprehensive analysis of microservices", "complex", HIGH),
    Case("Compare and contrast different sorting algorithms", "complex", HIGH),
    Case("Investigate the implications of quantum computing", "complex", HIGH),
]

INDICATORS = [
    Case("Analysing data", "medium", HIGH),
    Case("ANALYZE THIS", "medium", HIGH),
    Case("An in-depth look at Rome", "medium", HIGH),
    Case("Give me a step-by-step guide", "medium", HIGH),
    Case("Step\nby step, please", "medium", HIGH),
    Case("The trade-offs of caching", "medium", HIGH),
    Case("Design a schema and justify it", "complex", HIGH),
    Case("Prove that there are infinitely many primes", "medium", HIGH),
    Case("Evaluate and critique this argument thoroughly", "complex", HIGH),
    Case("What are the implications?", "medium", HIGH),
    Case("Explain it in detail", "complex", f"{HIGH} {MEDIUM}"),
    Case("Why is the sky blue?", "medium", MEDIUM),
    Case("WHY", "medium", MEDIUM),
    Case("Describe why cats purr", "medium", MEDIUM),
    Case("Describe and illustrate why cats purr", "complex", MEDIUM),
    Case("Pros and cons of remote work", "medium", MEDIUM),
    Case("The differences between TCP and UDP", "medium", MEDIUM),
    Case("Walk me through photosynthesis", "medium", MEDIUM),
    Case("Write a haiku", "medium", MEDIUM),
    Case("Implement quicksort", "medium", MEDIUM),
    Case("Please list three rivers", "medium", MEDIUM),
    Case("It rained; however, we played", "medium", CONJUNCTION),
    Case("Red as well as blue, on the other hand green", "medium", CONJUNCTION),
]

MENTIONED = [
    Case("the analyst called", "simple"),
    Case("buy a synthesizer", "simple"),
    Case("Contrastive Inc", "simple"),
    Case("explicit lyrics", "simple"),
    Case("A comparable compartment", "simple"),
    Case("An optimist, a thoroughbred", "simple"),
    Case("design patterns book", "simple"),
    Case("in. Depth", "simple"),
    Case("proof of address", "simple"),
    Case("I can't prove my identity", "simple"),
    Case("read and write", "simple"),
    Case("to do list", "simple"),
    Case("what does comprehensive mean?", "simple"),
    Case("What do you mean by thorough?", "simple"),
    Case("define analysis", "simple"),
    Case("What is an assessment?", "simple"),
    Case("How do you spell comprehensive?", "simple"),
    Case("What's a synonym for analyze?", "simple"),
    Case('Translate "compare and contrast" to French', "simple"),
    Case("Who wrote 'Why we sleep'?", "simple"),
    Case("The term „in depth“ has a hyphen", "simple"),
    Case('"Compare and contrast cats and dogs"', "complex", HIGH),
    Case("What is the analysis of variance?", "medium", HIGH),
    Case("What does `analyze()` do?", "medium", CODE),
]

SHAPE = [
    Case("What is UNIX? Is it free?", "medium", f"{QUESTIONS} {SENTENCES}"),
    Case("what?????", "simple"),
    Case("Is it https://example.com/?a=b&c=d?", "simple"),
    Case("I lost my card. It was blue.", "medium", SENTENCES),
    Case("my card is gone. what now", "medium", SENTENCES),
    Case("Hello! Are you there?", "simple"),
    Case("Is it blue? Thanks!", "simple"),
    Case("Dr. Smith lives in the U.S. now", "simple"),
    Case("Fruit, e.g. apples, i.e. food", "simple"),
    Case("Pi is 3.14 or so", "simple"),
    Case("Node.js or Vue.js today", "simple"),
    Case("Well... maybe so", "simple"),
    Case("1. apples\n2. pears", "medium", LIST),
    Case("- milk\n- eggs", "medium", LIST),
    Case("Buy (a) milk (b) eggs", "medium", LIST),
    Case("Red, green, blue, yellow", "medium", LIST),
    Case("red, green, and blue", "medium", LIST),
    Case("First, wash it. Second, dry it.", "medium", f"{LIST} {SENTENCES}"),
    Case("Austin, Texas", "simple"),
    Case("It costs 1,000,000,000 dollars", "simple"),
    Case("Do scientists know how memory works?", "medium", NESTED),
    Case("Can it depend on whether it rains?", "medium", NESTED),
    Case("Can you tell me what time it is?", "simple"),
    Case("Can you please explain why it rains?", "medium", MEDIUM),
    Case("When did What A Time come out", "simple"),
    Case("If it rains, what then?", "simple"),
    Case("A name with at least 3 letters but without vowels", "medium", CONSTRAINTS),
    Case("It must be at least blue", "simple"),
    Case("Open within two days", "simple"),
    Case("Cats vs dogs", "medium", COMPARISON),
    Case("U.S. vs. China", "medium", COMPARISON),
    Case("Is tea better than coffee?", "medium", COMPARISON),
    Case("Tea rather than coffee", "medium", COMPARISON),
    Case("Is Rust more robust than C?", "medium", COMPARISON),
    Case("Which is faster, A or B?", "medium", COMPARISON),
    Case("more than two cards", "simple"),
    Case("anything other than tea", "simple"),
    Case("def f(x):\n    return x", "medium", CODE),
    Case("Fix:\n```py\nwhy = 1\n```", "medium", CODE),
    Case("SELECT name FROM users", "medium", CODE),
    Case("console.log(1)", "medium", CODE),
    Case("a -> b", "simple"),
    Case("item(s) (blue)", "simple"),
    Case(r"\frac{1}{2}", "medium", MATHS),
    Case("$x_1$ is what", "medium", MATHS),
    Case("3x + 5 = 20", "medium", MATHS),
    Case("∫ sin", "medium", MATHS),
    Case("What is the integral of sin?", "medium", MATHS),
    Case("$5 and $10", "simple"),
    Case("What is 2+2?", "simple"),
]

LANGUAGES = [
    Case("Was ist KI?", "simple"),
    Case("Erkläre Rekursion", "medium", MEDIUM),
    Case("ERKLÄRE REKURSION", "medium", MEDIUM),
    Case("Erkla\u0308re Rekursion", "medium", MEDIUM),
    Case("Vergleiche Python und Java ausführlich", "complex", HIGH),
    Case("Pourquoi le ciel est-il bleu ?", "medium", MEDIUM),
    Case("Fais-moi l'analyse détaillée", "complex", HIGH),
    Case("¿Por qué el cielo es azul?", "medium", MEDIUM),
    Case("Como funciona um motor?", "medium", MEDIUM),
    Case("Spiegami la differenza tra TCP e UDP", "medium", MEDIUM),
    Case("Почему небо голубое?", "medium", MEDIUM),
    Case("Сравни подробно Python и Java", "complex", HIGH),
    Case("什么是人工智能？", "simple"),
    Case("分析是什么意思？", "simple"),
    Case("为什么天空是蓝色的？", "medium", MEDIUM),
    Case("请详细分析量子力学", "complex", HIGH),
    Case("你好吗？你叫什么？", "medium", f"{QUESTIONS} {SENTENCES}"),
    Case("人工知能とは何ですか？", "simple"),
    Case("機械学習を詳しく説明してください", "complex", f"{HIGH} {MEDIUM}"),
    Case("왜 하늘은 파란가요?", "medium", MEDIUM),
    Case("파이썬과 자바를 비교 분석해줘", "complex", HIGH),
    Case("ما هو الذكاء؟ كيف يعمل؟", "medium", f"{QUESTIONS} {SENTENCES}"),
    Case("यह क्या है। वह क्या है।", "medium", SENTENCES),
    Case("Τι είναι αυτό\u037e Ποιος είναι\u037e", "medium", f"{QUESTIONS} {SENTENCES}"),
    Case("ภาษาไทยคืออะไร", "simple"),
]

LENGTHS = [
    Case("", "simple"),
    Case("   \n\t ", "simple"),
    Case("?!", "simple"),
    Case("👍👍👍", "simple"),
    Case("blue " * 10, "simple"),
    Case("blue " * 11, "medium"),
    Case("blue " * 50, "medium"),
    Case("blue " * 51, "complex"),
    Case("蓝" * 20, "simple"),
    Case("蓝" * 22, "medium"),
    Case("蓝" * 102, "complex"),
]

CASES = [*SPEC, *INDICATORS, *MENTIONED, *SHAPE, *LANGUAGES, *LENGTHS]

# Each is repeated to 100,000 characters.
HOSTILE = (
    *'(?.`$=1\\\n\0\u0301\ud800\u200b、ก👍İﷺ“"',
    *("? ", "..x", ". ", "a.", "a,", "a, ", "a、", "[({<", "e\u0301\u0323", "\udfff\ud800", "x" * 50, "'a ", "(a) "),
    *(
        "`a",
        "```",
        "$=",
        "$a=\n",
        "x=",
        "1+",
        "1*1",
        "\n- a",
        " *\n",
        "}    ",
        "<a ",
        "function  ",
        "SELECT ",
        "SELECT x ",
    ),
    *("how ", "in ", "what is ", "what mean ", "define ", "which better ", "er than ", "only must ", "step by "),
    *("분석 ", "分析"),
)
