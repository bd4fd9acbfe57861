"""The little TeX that notebooks write between dollars, as MathML, which browsers draw without a library."""

import html
import re
from collections.abc import Callable

_TOKEN = re.compile(r"\\(?:text|mathrm|operatorname)\{[^{}]*\}|\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|[^\s\\]")
_FORMULA = re.compile(
    r"(`+)(?:.+?)\1|\$\$(?P<wide>[^$]+)\$\$|\$(?P<thin>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)", re.DOTALL
)
_OPERATORS = {
    **{"sum": "∑", "cap": "∩", "cup": "∪", "top": "⊤", "dots": "…", "cdot": "·", "times": "×", "le": "≤", "ge": "≥"},
    **{
        "ldots": "…",
        "in": "∈",
        "to": "→",
        "rightarrow": "→",
        "approx": "≈",
        "prod": "∏",
        "neq": "≠",
        "pm": "±",
        "lVert": "‖",
        "rVert": "‖",
    },
}
_LETTERS = {
    **{"alpha": "α", "beta": "β", "gamma": "γ", "sigma": "σ", "lambda": "λ", "mu": "μ", "rho": "ρ", "tau": "τ"},
    **{"partial": "∂", "ell": "ℓ", "theta": "θ", "delta": "δ", "epsilon": "ε", "pi": "π", "Delta": "Δ"},
    **{name: name for name in ("exp", "log", "max", "min", "softmax", "argmax")},
}
_PRIME = '<mi class="prime">′</mi>'  # stands high by itself: as a superscript it would be a speck far above
_ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~", "vec": "→"}


class FormulaError(ValueError):
    """TeX that is not understood."""


def apart(text: str) -> tuple[str, list[str]]:
    """``text`` with a mark for each formula, and the formulas as MathML, for ``together``; code in it is left alone."""
    found: list[str] = []

    def keep(match: re.Match[str]) -> str:
        tex = match["wide"] or match["thin"]
        if tex is None:
            return match[0]
        found.append(mathml(tex, wide=match["wide"] is not None))
        return f"\ue000{len(found) - 1}\ue001"

    return _FORMULA.sub(keep, re.sub("[\ue000\ue001]", "", text)), found


def together(text: str, formulas: list[str]) -> str:
    """``text`` with formulas in place of their marks."""
    return re.sub("\ue000(\\d+)\ue001", lambda match: formulas[int(match[1])], text)


def mathml(tex: str, *, wide: bool = False) -> str:
    """A formula as ``<math>``; one that is not understood is shown as it is written."""
    try:
        body = _Reader(_TOKEN.findall(tex)).row(None)
    except FormulaError:
        return f"<code>{html.escape(tex)}</code>"
    block = ' display="block"' if wide else ""
    return f"<math{block}><mrow>{body}</mrow></math>"


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def row(self, end: str | None) -> str:
        parts: list[str] = []
        while (token := self._peek()) != end:
            if token is None:
                raise FormulaError("a brace is not closed")
            parts.append(self._scripted())
        if end is not None:
            self.at += 1
        return "".join(parts)

    def _peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _next(self) -> str:
        if (token := self._peek()) is None:
            raise FormulaError("something is missing at the end")
        self.at += 1
        return token

    def _scripted(self) -> str:
        base, below, above = self._atom(), "", ""
        while (token := self._peek()) in ("_", "^", "'"):
            self.at += 1
            if token == "_":
                below += self._atom()
            elif token == "'" and not above:
                base = f"<mrow>{base}{_PRIME}</mrow>"
            else:
                above += _PRIME if token == "'" else self._atom()
        if below and above:
            return f"<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"
        if below or above:
            kind = "msub" if below else "msup"
            return f"<{kind}>{base}<mrow>{below or above}</mrow></{kind}>"
        return base

    def _atom(self) -> str:
        token = self._next()
        if token == "{":
            return f"<mrow>{self.row('}')}</mrow>"
        if token in ("}", "_", "^"):
            raise FormulaError(f"{token} stands alone")
        if not token.startswith("\\"):
            kind = "mn" if token[0].isdigit() else "mi" if token.isalpha() else "mo"
            fixed = ' stretchy="false"' if kind == "mo" else ""
            return f"<{kind}{fixed}>{html.escape(token)}</{kind}>"
        return self._command(token[1:])

    def _command(self, name: str) -> str:
        if name in _OPERATORS:
            return f"<mo>{_OPERATORS[name]}</mo>"
        if name in _LETTERS:
            return f"<mi>{_LETTERS[name]}</mi>"
        if name in ("left", "right"):
            return f"<mo>{html.escape(self._next())}</mo>"
        if name.endswith("}") and len(name) > 1:
            words = name.partition("{")[2][:-1].replace(" ", "\u00a0")  # others are trimmed
            return f"<mtext>{html.escape(words)}</mtext>"
        if name in (",", ";", ":", " ", "quad", "qquad", "!"):
            return '<mspace width="1em"/>' if "quad" in name else '<mspace width="0.2em"/>'
        if name in ("{", "}", "|"):
            return f"<mo>{name}</mo>"
        more: dict[str, Callable[[], str]] = {
            "sqrt": lambda: f"<msqrt>{self._atom()}</msqrt>",
            "frac": lambda: f"<mfrac>{self._atom()}{self._atom()}</mfrac>",
        }
        if name in more:
            return more[name]()
        if name in _ACCENTS:
            return f'<mover accent="true">{self._atom()}<mo>{_ACCENTS[name]}</mo></mover>'
        raise FormulaError(f"\\{name} is not known")
