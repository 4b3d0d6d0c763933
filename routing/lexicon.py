"""The words that show complexity, in ten languages, as data; and the matcher that finds them in one pass."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from routing.word import Span, Word, fold, word_set

# One row per indicator, so that an indicator counts once in whatever language and form it comes. Forms are
# separated by "|": "word*" is a stem, "!" an exception to the row's stems, "#" a number, "^" only where a
# sentence or request begins. Accents and case do not matter. Forms in Han, Kana and Hangul match anywhere.
HIGH: Mapping[str, str] = {
    "comprehensive": (
        "comprehensiv*|exhaustiv*|exaustiv*|umfassend*|abrangente*|всесторонн*|исчерпыва*|全面|包括的|網羅的|종합적|"
        "포괄적"
    ),
    "analyze": ("analyz*|analys*|!analyst*|analis*|!analista*|analiz*|анализ*|!анализатор*|проанализ*|分析|解析|분석"),
    "in depth": (
        "in depth|indepth|deep dive|en profondeur|approfondi*|en profundidad|em profundidade|"
        "tiefgehend*|углубл*|深入|深掘り|심층"
    ),
    "investigate": ("investig*|!investigator*|!investigativ*|untersuch*|indaga*|исследу*|исследова*|调查|調査|조사"),
    "implications": (
        "implication*|ramification*|repercussion*|auswirkung*|implicaci*|implicaco*|implicazion*|"
        "последстви*|影响|影響|시사점"
    ),
    "compare": "compar*|!comparator*|!comparabl*|!compart*|vergleich*|verglich*|сравн*|比较|比較|对比|比べ|비교",
    "contrast": (
        "^contrast|and contrast|compare contrast|to contrast|contrast the|contrast with|contrast between|"
        "contrasting|contrasted|contraste*|kontrast*|contrapon*|противопостав*|对照|対比|대조"
    ),
    "evaluate": (
        "evaluat*|!evaluator*|evalua*|evalue*|avalie*|avaliar*|avaliac*|valutare|valutazion*|bewert*|"
        "оцени*|оценк*|评估|評估|評価|评价|평가"
    ),
    "assess": "assess*|!assessor*|beurteil*|einschatz*",
    "thorough": "thorough*|!thoroughbred*|!thoroughfare*|rigorous*|grundlich*|minucios*|徹底",
    "detailed": (
        "detailed|in detail|in great detail|in more detail|detaillier*|detaille*|detallad*|detalhad*|"
        "en detail|en detalle|em detalhe*|dettagliat*|ausfuhrlich*|подробн*|детальн*|详细|詳細|詳しく|자세히|상세"
    ),
    "critique": "critiqu*|critically|kritisch*|批判|비판",
    "justify": "justif*|giustific*|begrund*|обосну*|обоснова*|论证|正当化|정당화",
    "trade-off": "trade off|trade offs|tradeoff*|abwag*|权衡|權衡|トレードオフ|트레이드오프",
    "synthesize": (
        "synthesize|synthesizes|synthesizing|synthesise|synthesises|synthesising|a synthesis of|синтезируй*"
    ),
    "step by step": (
        "step by step|schritt fur schritt|etape par etape|paso a paso|passo a passo|пошагов*|шаг за шагом|"
        "一步一步|逐步|分步|ステップバイステップ|단계별"
    ),
    "derive": "derive|derives|deriving|derivation*|herleit*|ableit*|выведи*|推导|推導|導出|도출",
    "prove": (
        "prove that|prove the|prove by|^prove|proof that|proof by|disprove*|beweise|beweisen|demontr*|"
        "demuestr*|demonstre|dimostra*|докаж*|доказат*|证明|證明|証明|증명"
    ),
    "design": (
        "design a|design an|design the|design me|design our|design my|designing a|designing an|"
        "entwirf*|entwerf*|concev*|disena|disene|disenar|progetta*|спроектир*|设计一|设计并|設計し|설계"
    ),
    "optimize": "optimiz*|optimis*|!optimism*|!optimist*|optimier*|ottimizz*|otimiz*|оптимизир*|优化|最適化|최적화",
    "elaborate": "elaborate|elaborates|elaborating",
    "examine": "examine|examines|examining",
    "reasoning": "your reasoning|chain of thought|show your work|hypothesize|hypothesise",
    "review": "literature review|systematic review|meta analysis",
}

MEDIUM: Mapping[str, str] = {
    "explain": (
        "explain*|explanation*|explic*|!explicit*|expliqu*|erklar*|erlauter*|spiega|spiegami|spiegare|"
        "spieghi|объясн*|поясн*|解释|解釋|説明|说明|說明|설명"
    ),
    "describe": ("describ*|beschreib*|decris*|decrire|decrivez|descrev*|descrip* of|descriv*|опиши*|описать|描述|묘사"),
    "how": (
        "how does|how do|how can|how could|how should|how would|how might|how to|how will|how exactly|"
        "wie funktionier*|wie kann|wie macht|comment fonctionne*|comment faire|comment puis|comment peut|"
        "como funciona*|como puedo|como posso|como hacer|como fazer|come funziona*|come posso|come si|"
        "как работа*|как сделать|как можно|как устроен*|如何|怎么|怎麼|怎样|怎樣|どうやって|どのように|仕組み|어떻게"
    ),
    "why": "why|how come|warum|wieso|weshalb|pourquoi|por que|perche|почему|зачем|为什么|為什麼|为何|なぜ|どうして|왜 ",
    "summarize": (
        "summari*|summary of|zusammenfass*|fasse|resumir|resumez|resume ce*|resuma|resumen de|riassum*|"
        "обобщи*|резюмир*|总结|總結|概括|要約|まとめて|요약"
    ),
    "discuss": "discuss*|diskut*|discut*|erorter*|обсуд*|讨论|討論|議論|論じ|논의|토론",
    "outline": "outline|outlines|outlining|skizzier*|概述|개요",
    "illustrate": "illustrat*|!illustrator*|!illustration*|veranschaulich*|说明白",
    "clarify": "clarif*|verdeutlich*|澄清",
    "difference": (
        "difference* between|differ from|differs from|different from|distinguish*|unterschied* zwischen|"
        "difference* entre|diferencia* entre|diferenca* entre|differenz* tra|разниц* между|отличается|区别|"
        "區別|違い|차이"
    ),
    "pros and cons": (
        "pros and cons|pros cons|advantage* and disadvantage*|benefits and drawbacks|"
        "strengths and weaknesses|vor und nachteile|avantages et inconvenients|ventajas y desventajas|"
        "vantagens e desvantagens|vantaggi e svantaggi|плюсы и минусы|优缺点|優缺點|メリットとデメリット|장단점"
    ),
    "help me understand": (
        "help me understand|help me to understand|help us understand|hilf mir|aide moi a|"
        "ayudame a entender|aiutami a capire|me ajude a entender|помоги понять|помоги мне понять|帮我理解|이해하"
    ),
    "walk me through": "walk me through|talk me through|guide me through|take me through",
    "write": (
        "write a|write an|write the|write me|write some|write code|write about|write in|write #|^write|"
        "writing a|writing an|draft a|draft an|^draft|compose a|compose an|^compose|schreib|schreibe|"
        "schreiben|ecris|ecrivez|redige*|escribe|escriba|escribir|escreva|escrever|scrivi|scrivere|напиши*|"
        "写一|写出|寫一|書いて|작성"
    ),
    "implement": "implement*|реализу*|实现|實現|実装|구현",
    "create": (
        "create a|create an|^create|generate a|generate an|^generate|build a|build an|^build|develop a|"
        "develop an|^develop|devise a|devise an|propose a|propose an|formulate a|plan a|construct a|"
        "construct an|come up with|erstelle|entwickle|entwickel|crea un|crea una|cree un|cree une|crie um|"
        "crie uma|создай*|разработай*|作成して"
    ),
    "rewrite": "rewrite|rewriting|rephrase|paraphrase|proofread|refactor*|debug*",
    "calculate": (
        "calculate|calculates|calculating|^compute|compute the|^solve|solve the|solve for|solve this|"
        "determine the|determine whether|determine if|^determine|^find the|berechne*|calcule|calcula|"
        "calcular|resuelv*|вычисли*|рассчита*|реши|решите|计算|計算|求解|계산"
    ),
    "interpret": "interpret|interprets|interpreting|interpretier*",
    "argue": "^argue|argue that|argue for|argue against|argument* for|argument* against",
    "examples": (
        "with examples|with an example|give an example|give examples|give some examples|give me examples|mit beispielen"
    ),
    "list": "^list|list the|list all|list some|list #|^name #|enumerate",
    "hypothesis": (
        "what would happen|what will happen if|what happens if|what happens when|suppose that|^suppose|"
        "imagine that|^imagine"
    ),
}

CONJUNCTIONS: Mapping[str, str] = {
    "opposing": (
        "however|whereas|although|even though|nevertheless|nonetheless|on the other hand|as opposed to|"
        "despite|on the contrary|jedoch|obwohl|wahrend hingegen|cependant|toutefois|tandis que|bien que|"
        "sin embargo|aunque|mientras que|no entanto|porem|embora|tuttavia|sebbene|однако|хотя|тогда как|然而|"
        "虽然|雖然|尽管|しかし|一方で|하지만|반면"
    ),
    "inferring": (
        "therefore|consequently|thus|hence|accordingly|deshalb|infolgedessen|par consequent|por lo tanto|"
        "portanto|pertanto|следовательно|поэтому|因此|所以|したがって|따라서"
    ),
    "adding": (
        "as well as|moreover|furthermore|in addition|not only|while also|sowie|daruber hinaus|ainsi que|"
        "de plus|asi como|ademas|assim como|alem disso|inoltre|а также|кроме того|不仅|不僅|此外|さらに|뿐만 아니라"
    ),
    "conditional": (
        "given that|assuming|provided that|such that|so that|unless|vorausgesetzt|"
        "etant donne que|dado que|при условии|учитывая|假设|假設|鉴于|ただし|가정"
    ),
}

CONSTRAINTS: Mapping[str, str] = {
    "must": (
        "must|has to be|have to be|needs to be|shall|should not|do not use|don t use|cannot|without|avoid|"
        "ohne|muss|sans|doit|debe|без|должен|должн*|必须|必須|不得|없이"
    ),
    "bound": (
        "at least|at most|no more than|no less than|no fewer than|no longer than|not exceed|up to #|"
        "maximum of|minimum of|mindestens|hochstens|maximal|au moins|au plus|al menos|como maximo|"
        "pelo menos|no maximo|almeno|al massimo|не более|не менее|至少|最多|不超过|不超過|以内|以上|以下|이상|이하"
    ),
    "amount": (
        "exactly #|under #|below #|over #|less than #|fewer than #|more than #|within|between # and #|"
        "genau #|exactement #|exactamente #|ровно #"
    ),
    "only": "only|nur|seulement|uniquement|solamente|solo|somente|soltanto|только|只能|だけ",
}

ORDINALS: Mapping[str, str] = {
    "first": "firstly|first of all|^first|erstens|premierement|primero|во первых|首先|まず",
    "second": "secondly|^second|zweitens|deuxiemement|segundo|во вторых|其次|次に",
    "third": "thirdly|^third|drittens|troisiemement|tercero|в третьих|最后|最後に",
    "last": "^finally|^lastly|^then",
}

COMPARISONS: Mapping[str, str] = {
    "versus": "vs|versus",
    "preferring": (
        "rather than|besser als|mejor que|melhor que|meilleur* que|mieux que|meglio di|лучше чем|よりも|보다 "
    ),
}

MATHEMATICS: Mapping[str, str] = {
    "operation": (
        "integral of|derivative of|antiderivative of|solve for|sum of the first|limit as|"
        "differential equation*|eigenvalue*"
    ),
}

# Words that are only mentioned are no indicators: "define analysis", "what does thorough mean?".
MENTIONS: Mapping[str, str] = {
    "next words": (
        "how do you say|how do i say|how to say|how do you spell|how do i spell|how to spell|spell|"
        "how do you pronounce|how to pronounce|pronounce|synonym* for|synonym* of|antonym* for|antonym* of|"
        "opposite of|definition of|meaning of|mean by|spelling of|the word|the term|the verb|the phrase|"
        "another word for|was bedeutet|que signifie|que significa|cosa significa|что значит|что означает"
    ),
    "rest of clause": "define|what is|what s|whats|what are|was ist|qu est ce que|que es|cos e|что такое",
    "since what": "mean|means|meant",
}
_MEANING_ASKED = ("什么意思", "什麼意思", "の意味", "とは何", "무슨 뜻", "뜻은")
_LONGEST_MEANING_QUESTION = 40  # characters; a longer text that asks for a meaning asks for more besides

TABLES: Mapping[str, Mapping[str, str]] = {
    "high": HIGH,
    "medium": MEDIUM,
    "conjunction": CONJUNCTIONS,
    "constraint": CONSTRAINTS,
    "ordinal": ORDINALS,
    "comparison": COMPARISONS,
    "mathematics": MATHEMATICS,
    "mention": MENTIONS,
}

_SCRIPTS_BY_SUBSTRING = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]")
_JOINING = " \t\n\r\xa0-‐‑–/"  # what may stand between the words of one phrase
_CLAUSE_ENDS = frozenset(".!?,;:\n()")
_STEM_KEY = 4  # letters; every stem has at least as many
_NUMBERS = word_set("one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred")
_BEFORE_A_REQUEST = word_set("please then kindly")

Hits = dict[str, dict[str, list[Span]]]


class _Form(NamedTuple):
    table: str
    indicator: str
    parts: tuple[str, ...]
    begins: bool
    exceptions: tuple[str, ...]


class _Match(NamedTuple):
    form: _Form
    first: int
    last: int


def find_indicators(text: str, words: list[Word]) -> Hits:
    """Spans by table and indicator; `words` are those of `text`. Words that are only mentioned are left out."""
    found: Hits = defaultdict(lambda: defaultdict(list))
    matches = list(_match_words(text, words))
    mentioned = _find_mentioned(text, words, matches)
    for form, first, last in matches:
        if first not in mentioned and form.table != "mention":
            _add(found[form.table][form.indicator], (words[first][1], words[last][2]))
    for table, indicator, span in _match_substrings(text):
        found[table][indicator].append(span)
    return found


def _add(spans: list[Span], span: Span) -> None:
    """Append, or keep the longer where two forms of one indicator overlap ("write", "write a")."""
    if spans and span[0] < spans[-1][1]:
        spans[-1] = max(spans[-1], span, key=lambda s: s[1] - s[0])
    else:
        spans.append(span)


def _forms() -> Iterator[_Form]:
    for table, rows in TABLES.items():
        for indicator, row in rows.items():
            forms = row.split("|")
            exceptions = tuple(fold(form[1:].rstrip("*")) for form in forms if form[0] == "!")
            for form in forms:
                if form[0] != "!":
                    yield _Form(table, indicator, _parts(form), form[0] == "^", exceptions)


def _parts(form: str) -> tuple[str, ...]:
    # Folding would take the voicing marks off Kana, and a substring's outer space is part of it.
    return (form,) if _SCRIPTS_BY_SUBSTRING.search(form) else tuple(map(fold, form.removeprefix("^").split()))


def _is_substring(form: _Form) -> bool:
    return _SCRIPTS_BY_SUBSTRING.search(form.parts[0]) is not None


def _index(is_stem: bool) -> dict[str, tuple[_Form, ...]]:
    """The forms in words by what one look-up per word finds them with: their first word, or its stem's beginning."""
    index: dict[str, list[_Form]] = {}
    for form in _forms():
        if not _is_substring(form) and (form.parts[0][-1] == "*") == is_stem:
            index.setdefault(form.parts[0][:_STEM_KEY] if is_stem else form.parts[0], []).append(form)
    return {key: tuple(forms) for key, forms in index.items()}


_BY_WORD = _index(is_stem=False)
_BY_STEM = _index(is_stem=True)
_BY_SUBSTRING = [form for form in _forms() if _is_substring(form)]


def _match_words(text: str, words: list[Word]) -> Iterator[_Match]:
    for first, (word, _, _) in enumerate(words):
        for form in _BY_WORD.get(word, ()) + _BY_STEM.get(word[:_STEM_KEY], ()):
            last = first + len(form.parts) - 1
            if last < len(words) and _matches(form, text, words, first):
                yield _Match(form, first, last)


def _matches(form: _Form, text: str, words: list[Word], first: int) -> bool:
    for number, part in enumerate(form.parts, first):
        if not _fits(part, words[number][0]):
            return False
        if number > first and text[words[number - 1][2] : words[number][1]].strip(_JOINING):
            return False
    if form.exceptions and words[first][0].startswith(form.exceptions):
        return False
    return not form.begins or _begins_request(text, words, first)


def _fits(part: str, word: str) -> bool:
    if part == "#":
        return word[:1].isdigit() or word in _NUMBERS
    return word == part or (part[-1] == "*" and word.startswith(part[:-1]))


def _begins_request(text: str, words: list[Word], first: int) -> bool:
    if first == 0 or words[first - 1][0] in _BEFORE_A_REQUEST:
        return True
    return not _CLAUSE_ENDS.isdisjoint(text[words[first - 1][2] : words[first][1]])


def _find_mentioned(text: str, words: list[Word], matches: list[_Match]) -> set[int]:
    mentioned: set[int] = set()
    for form, first, last in matches:
        if form.table == "mention":
            mentioned.update(_FIND_MENTIONED[form.indicator](text, words, first, last))
    return mentioned


def _next_words(text: str, words: list[Word], first: int, last: int) -> range:
    return range(first, _clause_end(text, words, last, 3))


def _rest_of_clause(text: str, words: list[Word], first: int, last: int) -> range:
    """The object of "what is …" where it is a bare name: up to three words, and not "the …"."""
    end = _clause_end(text, words, last, 4)
    is_name = end - last <= 4 and words[min(last + 1, len(words) - 1)][0] != "the"
    return range(last + 1, end if is_name else last + 1)


def _since_what(text: str, words: list[Word], first: int, last: int) -> range:
    for number in range(first - 1, max(-1, first - 8), -1):
        if words[number][0] == "what":
            return range(number, last)
    return range(0)


_FIND_MENTIONED = {"next words": _next_words, "rest of clause": _rest_of_clause, "since what": _since_what}


def _clause_end(text: str, words: list[Word], last: int, limit: int) -> int:
    """The index after the clause's last word, at most `limit` words after `last`."""
    end = last + 1
    while end < min(len(words), last + 1 + limit) and _CLAUSE_ENDS.isdisjoint(text[words[end - 1][2] : words[end][1]]):
        end += 1
    return end


def _match_substrings(text: str) -> Iterator[tuple[str, str, Span]]:
    if text.isascii() or not _SCRIPTS_BY_SUBSTRING.search(text):
        return
    if len(text) <= _LONGEST_MEANING_QUESTION and any(asked in text for asked in _MEANING_ASKED):
        return
    for form in _BY_SUBSTRING:
        needle = form.parts[0]
        start = text.find(needle)
        while start >= 0:
            yield form.table, form.indicator, (start, start + len(needle))
            start = text.find(needle, start + len(needle))
