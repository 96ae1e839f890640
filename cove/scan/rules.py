"""What a secret looks like: a rule for each kind, by the form that its issuer published. Pure.

A rule's anchors are looked for first, for one search over a file costs little; its expression then decides, whose group
`secret` is the secret itself. A checksum that a token carries is checked; what its issuer prints in documentation, and
what repeats itself as only an example does, isn't reported.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_EXAMPLE = re.compile(
    rb"(?i)example|xxxx|\.\.\.|1234567890|abcdefghij|changeme|your[_-]?|placeholder|redacted|dummy"
)


class Rule(NamedTuple):
    name: str
    title: str
    anchors: tuple[bytes, ...]
    expression: re.Pattern[bytes]
    shown: int = 4  # letters of the secret that are shown; its public prefix counts
    entropy: float = 3.0  # bits for a letter, at least
    check: Callable[[bytes], bool] = bool
    before: int = 0  # bytes by which a match may begin before the anchor


def entropy_of(data: bytes) -> float:
    """Shannon's entropy in bits for a byte; 0 for no bytes."""
    counts = [data.count(byte) for byte in set(data)]
    return -sum(count / len(data) * math.log2(count / len(data)) for count in counts)


def has_github_checksum(token: bytes) -> bool:
    """Whether the last six letters are the CRC-32 of the thirty before them, in base 62 (GitHub's blog, "Behind
    GitHub's new authentication token formats"; npm's tokens are alike)."""
    body = token.partition(b"_")[2]
    number, digits = zlib.crc32(body[:-6]), ""
    while number:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits.rjust(6, "0").encode() == body[-6:]


# The key that every Vagrant box had, and that anybody may read in its repository.
_PUBLIC = (b"MIIEogIBAAKCAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzI",)


def looks_real(secret: bytes, rule: Rule) -> bool:
    """Whether a secret is more than an example."""
    if secret in _PUBLIC or _EXAMPLE.search(secret):
        return False
    return entropy_of(secret) >= rule.entropy and rule.check(secret)


def _rule(name: str, title: str, anchors: str, expression: str, **more: object) -> Rule:
    compiled = re.compile(expression.encode())
    return Rule(name, title, tuple(word.encode() for word in anchors.split("|")), compiled, **more)  # type: ignore[arg-type]


_END = r"(?![A-Za-z0-9_-])"
_START = r"(?<![A-Za-z0-9_-])"
# A line end may be written as the two letters \n, as in JSON.
_PEM_BODY = r"(?:\\r|\\n|[\r\n \t\"',+])*+(?:[A-Za-z-]{1,40}: [^\r\n\\]{1,200}(?:\\r|\\n|[\r\n])++){0,8}+"

RULES: tuple[Rule, ...] = (
    _rule(
        "private-key", "private key", "PRIVATE KEY",
        r"-----BEGIN (?P<kind>(?:RSA |EC |DSA |OPENSSH |ENCRYPTED )?PRIVATE KEY|PGP PRIVATE KEY BLOCK)-----"
        + _PEM_BODY + r"(?P<secret>[A-Za-z0-9+/]{32,76})", shown=0, entropy=2.5, before=27,
    ),
    _rule("putty-key", "private key of PuTTY", "PuTTY-User-Key-File-",
          r"PuTTY-User-Key-File-[23]: [^\n]{1,100}\n[^\0]{1,8000}?Private-Lines: \d+\r?\n"
          r"(?P<secret>[A-Za-z0-9+/=]{32,76})",
          shown=0),
    _rule("aws-key", "secret key of AWS", "AKIA|ASIA",
          r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])[^\0]{1,200}?(?<![A-Za-z0-9/+])"
          r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", shown=2, entropy=4.0),
    _rule("gcp-api-key", "API key of Google", "AIza", _START + r"(?P<secret>AIza[0-9A-Za-z_-]{35})" + _END, shown=6,
          entropy=3.8),
    _rule("azure-storage-key", "storage key of Azure", "AccountKey=", r"AccountKey=(?P<secret>[A-Za-z0-9+/]{86}==)",
          entropy=4.5),
    _rule("azure-client-secret", "client secret of Azure", "Q~",
          r"(?<![A-Za-z0-9_~.-])(?P<secret>[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34})(?![A-Za-z0-9_~.-])",
          entropy=3.8, before=4),
    _rule("github-token", "token of GitHub", "ghp_|gho_|ghu_|ghs_|ghr_",
          _START + r"(?P<secret>gh[pousr]_[A-Za-z0-9]{36})" + _END, shown=8, check=has_github_checksum),
    _rule("github-fine-token", "token of GitHub", "github_pat_",
          _START + r"(?P<secret>github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})" + _END, shown=15, entropy=4.0),
    _rule("gitlab-token", "token of GitLab", "glpat-|gldt-|glrt-|glptt-|glcbt-|glsoat-",
          _START + r"(?P<secret>gl(?:pat|dt|rt|ptt|cbt|soat)-[0-9A-Za-z_.-]{20,300})", shown=10, entropy=3.5),
    _rule("slack-token", "token of Slack", "xoxb-|xoxp-|xoxa-|xoxr-|xoxs-|xapp-",
          _START + r"(?P<secret>(?:xox[abprs]-\d{9,}-[0-9A-Za-z-]{20,200}|xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{40,}))",
          shown=5),
    _rule("slack-webhook", "web hook of Slack", "hooks.slack.com/services/",
          r"hooks\.slack\.com/services/T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/(?P<secret>[A-Za-z0-9]{20,40})" + _END, entropy=3.5),
    _rule("stripe-key", "key of Stripe", "sk_live_|rk_live_",
          _START + r"(?P<secret>[sr]k_live_[0-9A-Za-z]{24,250})" + _END, shown=10, entropy=3.5),
    _rule("npm-token", "token of npm", "npm_", _START + r"(?P<secret>npm_[A-Za-z0-9]{36})" + _END, shown=8,
          check=has_github_checksum),
    _rule("pypi-token", "token of PyPI", "pypi-AgE",
          _START + r"(?P<secret>pypi-AgE(?:IcHlwaS5vcmc|NdGVzdC5weXBpLm9yZw)[A-Za-z0-9_-]{50,1000})", shown=9),
    _rule("docker-token", "token of Docker Hub", "dckr_pat_|dckr_oat_",
          _START + r"(?P<secret>dckr_[po]at_[A-Za-z0-9_-]{27,32})" + _END, shown=13, entropy=3.8),
    _rule("huggingface-token", "token of Hugging Face", "hf_", _START + r"(?P<secret>hf_[A-Za-z]{34})" + _END, shown=7,
          entropy=4.0),
    _rule("anthropic-key", "API key of Anthropic", "sk-ant-",
          _START + r"(?P<secret>sk-ant-(?:api|admin)\d\d-[A-Za-z0-9_-]{80,120}AA)" + _END, shown=14, entropy=4.0),
    _rule("openai-key", "API key of OpenAI", "T3BlbkFJ",
          _START + r"(?P<secret>sk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,80}T3BlbkFJ[A-Za-z0-9_-]{20,80})" + _END, shown=7,
          entropy=4.0, before=100),
    _rule("digitalocean-token", "token of DigitalOcean", "dop_v1_|doo_v1_|dor_v1_",
          _START + r"(?P<secret>do[por]_v1_[a-f0-9]{64})" + _END, shown=11, entropy=3.5),
    _rule("sendgrid-key", "API key of SendGrid", "SG.",
          _START + r"(?P<secret>SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})" + _END, shown=6, entropy=4.0),
    _rule("vault-token", "token of Vault", "hvs.|hvb.", _START + r"(?P<secret>hv[sb]\.[A-Za-z0-9_-]{90,300})" + _END,
          shown=6, entropy=4.0),
    _rule("shopify-token", "token of Shopify", "shpat_|shpca_|shppa_|shpss_",
          _START + r"(?P<secret>shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32})" + _END, shown=8, entropy=3.3),
)  # fmt: skip


class FileRule(NamedTuple):
    """What a file of a certain name holds: every match of `expression` is a secret, but for references to variables."""

    name: str
    title: str
    path: re.Pattern[str]
    expression: re.Pattern[bytes]


def _file(name: str, title: str, path: str, expression: str) -> FileRule:
    return FileRule(name, title, re.compile(path), re.compile(expression.encode(), re.M))


FILE_RULES: tuple[FileRule, ...] = (
    _file("netrc", "password in .netrc", r"(?:^|/)[._]netrc$",
          r"(?:^|\s)password\s+(?P<secret>[^\s]{3,200})"),
    _file("docker-login", "login to a registry",
          r"(?:^|/)(?:\.docker/config\.json|\.dockercfg|\.config/containers/auth\.json)$",
          r"\"(?:auth|identitytoken|password)\"\s*:\s*\"(?P<secret>[^\"\s]{8,20000})\""),
    _file("git-credentials", "password in .git-credentials", r"(?:^|/)(?:\.git-credentials|\.config/git/credentials)$",
          r"^https?://[^:@/\s]{1,200}:(?P<secret>[^@\s]{3,500})@"),
    _file("aws-credentials", "secret key of AWS", r"(?:^|/)\.aws/(?:credentials|config)$",
          r"^\s*aws_(?:secret_access_key|session_token)\s*=\s*(?P<secret>[A-Za-z0-9/+=]{20,2000})"),
    _file("kube-config", "credentials of a cluster",
          r"(?:^|/)(?:\.kube/config|kubeconfig|etc/kubernetes/[a-z-]+\.conf)$",
          r"^\s*-?\s*(?:client-key-data|token|password):\s*[\"']?(?P<secret>[^\s\"']{8,20000})"),
    _file("npmrc", "login to a registry of npm", r"(?:^|/)\.npmrc$",
          r"^[^#;\n]*:?_(?:authToken|auth|password)\s*=\s*[\"']?(?P<secret>[^\s\"']{6,2000})"),
    _file("pypirc", "login to an index of Python", r"(?:^|/)(?:\.pypirc|pip\.conf|\.config/pip/pip\.conf)$",
          r"^(?:\s*password\s*[=:]\s*|.*https?://[^:@/\s]{1,200}:)(?P<secret>[^@\s]{3,500})"),
    _file("pgpass", "password of PostgreSQL", r"(?:^|/)\.pgpass$",
          r"^[^#:\n]*:[^:\n]*:[^:\n]*:[^:\n]*:(?P<secret>[^\n:]{1,200})$"),
    _file("my-cnf", "password of MySQL", r"(?:^|/)\.my\.cnf$", r"^\s*password\s*=\s*[\"']?(?P<secret>[^\s\"']{1,200})"),
    _file("cargo-credentials", "token of a registry of crates", r"(?:^|/)\.cargo/credentials(?:\.toml)?$",
          r"^\s*token\s*=\s*\"(?P<secret>[^\"\n]{8,2000})\""),
    _file("gcloud-login", "login to Google Cloud",
          r"(?:^|/)\.config/gcloud/(?:application_default_credentials|legacy_credentials/.*)\.json$",
          r"\"(?:refresh_token|client_secret)\"\s*:\s*\"(?P<secret>[^\"\n]{8,2000})\""),
    _file("terraform-token", "token of Terraform", r"(?:^|/)\.terraform\.d/credentials\.tfrc\.json$",
          r"\"token\"\s*:\s*\"(?P<secret>[^\"\n]{8,2000})\""),
    _file("password-hash", "hash of a login password", r"^etc/shadow-?$",
          r"^[^:\n]{1,100}:!?(?P<secret>\$[0-9a-z]{1,3}\$[^:\n]{10,300}):"),
)  # fmt: skip

_NAMES = re.compile(
    r"(?i)(?:^|_)(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|API_?KEY|PRIVATE_?KEY|SECRET_?KEY|ACCESS_?KEY|CREDENTIALS)$"
)
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9_])([A-Za-z_][A-Za-z0-9_]{2,80})=(\"[^\"]{1,500}\"|'[^']{1,500}'|[^\s\"'|;&]{1,500})"
)
_NOTHING = re.compile(
    r"(?i)^(?:\$.*|<.*>|\{.*\}|\*+|/.*|[a-z]+://.*|true|false|none|null|yes|no|changeme|password|secret|token|0|1)$"
)


def assigned(text: str) -> list[tuple[str, str]]:
    """Variables in a line that are named like a secret and hold something: name, value."""
    found = []
    for name, value in _ASSIGNED.findall(text[:200_000]):
        value = value.strip("\"'")
        if _NAMES.search(name) and len(value) >= 6 and not _NOTHING.match(value):
            found.append((name, value))
    return found
