"""Variables, quotes, mounts, addresses and values: what each form means, and the words of a refusal."""

from __future__ import annotations

import msgspec
import pytest

from cove.dockerfile.errors import DockerfileError
from cove.dockerfile.expand import Budget, BudgetSpent, ExpansionError, Rules, expand
from cove.dockerfile.giturl import parse_git_url
from cove.dockerfile.globs import Glob, GlobError
from cove.dockerfile.mounts import parse_mount
from cove.dockerfile.values import Platform, check_mode, duration_ns, parse_platform, stop_signal

ENV = {"SET": "value", "NONE": "", "TWO": "a  b", "PATH": "/a/b/c.tar.gz", "STAR": "*", "CITY": "Zürich"}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain", "plain"),
        ("$SET", "value"),
        ("${SET}", "value"),
        ("x$SET-y", "xvalue-y"),
        ("$SETx", ""),
        ("${SET}x", "valuex"),
        ("$CITY!", "Zürich!"),
        ("$MISSING", ""),
        ("$", "$"),
        ("$.", "$."),
        ("$1x", "x"),
        ("$12x", "x"),
        ("$@-$*-$#-$?-$$-$!-$0", "------"),
        ("\\$SET", "$SET"),
        ("\\\\$SET", "\\value"),
        ("a\\", "a"),
        ("a\\b", "ab"),
        ("'$SET \\'", "$SET \\"),
        ('"$SET"', "value"),
        ('"\\$SET \\" \\\\ \\n"', '$SET " \\ \\n'),
        ('"it\'s"', "it's"),
        ("a'b'\"c\"d", "abcd"),
        ("${SET:-other}", "value"),
        ("${NONE:-other}", "other"),
        ("${NONE-other}", ""),
        ("${MISSING-other}", "other"),
        ("${MISSING:-$SET}", "value"),
        ("${MISSING:-${ALSO:-deep}}", "deep"),
        ("${MISSING:-'}'}", "}"),
        ("${MISSING:-\\}}", "}"),
        ("${SET:+yes}", "yes"),
        ("${NONE:+yes}", ""),
        ("${NONE+yes}", "yes"),
        ("${MISSING+yes}", ""),
        ("${SET:?why}", "value"),
        ("${NONE?why}", ""),
        ("${PATH#*/}", "a/b/c.tar.gz"),
        ("${PATH##*/}", "c.tar.gz"),
        ("${PATH%.*}", "/a/b/c.tar"),
        ("${PATH%%.*}", "/a/b/c"),
        ("${PATH#/?/}", "b/c.tar.gz"),
        ("${PATH#nothing}", "/a/b/c.tar.gz"),
        ("${PATH%/*.gz}", "/a/b"),
        ("${PATH%%/*}", ""),
        ("${PATH#}", "/a/b/c.tar.gz"),
        ("${PATH/\\//-}", "-a/b/c.tar.gz"),
        ("${PATH//\\//-}", "-a-b-c.tar.gz"),
        ("${PATH//[/-}", "/a/b/c.tar.gz"),
        ("${PATH/b*./X}", "/a/Xgz"),
        ("${PATH//?.?/_}", "/a/b/_a_z"),
        ("${STAR#\\*}", ""),
        ("${TWO/  /,}", "a,b"),
        ("${MISSING/a/b}", ""),
        ("<<EOF", "<<EOF"),
        ("a<b", "a<b"),
    ],
)
def test_a_word_with_variables_becomes_text(word: str, text: str) -> None:
    assert expand(word, ENV).text == text


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("a b", ("a", "b")),
        ("$TWO", ("a", "b")),
        ('"$TWO"', ("a  b",)),
        ("x$TWO-y", ("xa", "b-y")),
        ("'a b'c d", ("a bc", "d")),
        ("a\\ b", ("a b",)),
        ("$MISSING", ()),
        ("$NONE a ${NONE}", ("a",)),
        ("  a\t b ", ("a", "b")),
    ],
)
def test_words_are_split_at_spaces_that_are_not_quoted(word: str, words: tuple[str, ...]) -> None:
    assert expand(word, ENV).words == words


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("'a", "a single quote isn't closed"),
        ('"a', "a double quote isn't closed"),
        ("${SET", "missing '}' at the end of a substitution, e.g. ${NAME:-value}"),
        ("${", "missing '}' at the end of a substitution"),
        ("${SET:-a", "missing '}' at the end of a substitution"),
        ("${}", "bad substitution: a name must follow ${"),
        ("${{SET}}", "bad substitution"),
        ("${.}", "unsupported modifier (.) in substitution: expected :-, :+, :?, #, % or /"),
        ("${SET=a}", "unsupported modifier (=)"),
        ("${SET:=a}", "unsupported modifier (:=)"),
        ("${SET:#a}", "unsupported modifier (:#)"),
        ("${MISSING:?}", "MISSING: is not allowed to be unset"),
        ("${NONE:?}", "NONE: is not allowed to be empty"),
        ("${MISSING?say $SET}", "MISSING: say value"),
        ("${SET/a}", "missing '/' at the end of a substitution"),
        ("${SET#\\a}", "invalid pattern (\\a) in substitution: invalid escape '\\a'"),
        ("${SET#" + "a" * 300 + "}", "longer than 256 characters"),
    ],
)
def test_a_word_that_means_nothing_is_refused(word: str, message: str) -> None:
    with pytest.raises(ExpansionError) as caught:
        expand(word, ENV)
    assert message in str(caught.value)


def test_what_was_set_and_what_was_not_is_told() -> None:
    result = expand("$SET ${NONE} ${MISSING:-$ALSO}", ENV)
    assert (result.used, result.unset) == ({"SET", "NONE"}, {"MISSING", "ALSO"})


def test_rules_keep_what_they_say() -> None:
    assert expand("'$A' \"b\"", {}, Rules(keep_quotes=True)).text == "'$A' \"b\""
    assert expand("$A ${B} ${C:-d}", {}, Rules(keep_unset=True)).text == "$A ${B} ${C:-d}"
    assert expand("it's $SET\\$", ENV, Rules(plain_quotes=True)).text == "it's value$"
    assert expand("`$SET \\$SET", ENV, Rules(escape="`")).text == "$SET \\value"


def test_all_expansions_of_a_file_have_one_bound() -> None:
    budget = Budget(100)
    expand("a" * 60, {}, budget=budget)
    with pytest.raises(BudgetSpent, match="variables make too much text"):
        expand("a" * 60, {}, budget=budget)
    with pytest.raises(BudgetSpent):
        expand("a", {}, budget=budget)


@pytest.mark.parametrize(
    ("pattern", "value", "text", "result"),
    [
        ("a", "banana", "X", "bXnXnX"),
        ("", "ab", "-", "-a-b-"),
        ("*", "abc", "-", "-"),
        ("a*", "banana", "-", "b-"),
        ("?", "abc", "-", "---"),
        ("n*n", "banana", "-", "ba-a"),
        ("x*", "abc", "-", "abc"),
    ],
)
def test_a_pattern_is_replaced_everywhere(pattern: str, value: str, text: str, result: str) -> None:
    assert Glob(pattern).replace(value, text, True, 1000) == result


def test_replacing_has_a_bound() -> None:
    for pattern in ("a", ""):
        with pytest.raises(GlobError, match="replacing makes more than 100 characters"):
            Glob(pattern).replace("a" * 50, "xyz", True, 100)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target=/x", {"target": "/x"}),
        ("type=bind,src=a,dst=/x,rw", {"source": "a", "target": "/x", "read_only": False}),
        ("type=bind,from=s,source=/a,destination=/x,ro=false",
         {"source_stage": "s", "source": "/a", "target": "/x", "read_only": False}),
        ("type=cache,target=/x,id=i,sharing=locked,mode=0700,uid=1,gid=2,from=s",
         {"kind": "cache", "target": "/x", "id": "i", "sharing": "locked", "mode": 0o700, "uid": 1, "gid": 2,
          "read_only": False, "source_stage": "s"}),
        ("TYPE=CACHE,target=/x,readonly", {"kind": "cache", "target": "/x"}),
        ("type=tmpfs,target=/x,size=1.5m",
         {"kind": "tmpfs", "target": "/x", "size_bytes": 3 << 19, "read_only": False}),
        ("type=secret,id=t", {"kind": "secret", "id": "t"}),
        ("type=secret,id=t,env=T,required", {"kind": "secret", "id": "t", "env": "T", "required": True}),
        ("type=secret,target=/a/b,required=true", {"kind": "secret", "target": "/a/b", "required": True}),
        ("type=ssh", {"kind": "ssh"}),
        ("type=ssh,id=github,mode=600", {"kind": "ssh", "id": "github", "mode": 0o600}),
        ('"target=/a,b"', {"target": "/a,b"}),
        ("target=$D", {"target": "$D!"}),
    ],
)  # fmt: skip
def test_a_mount_is_understood(text: str, said: dict[str, object]) -> None:
    mount = parse_mount(text, lambda value: value + "!" if "$" in value else value)
    empty = {field.name: field.default for field in msgspec.structs.fields(mount)}
    assert {
        name: value for name, value in msgspec.structs.asdict(mount).items() if value != empty[name]
    } == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bind mount has no target, e.g. --mount=type=bind,target=/data"),
        (
            "type=volume,target=/x",
            'unsupported mount type "volume": expected bind, cache, tmpfs, secret, ssh',
        ),
        ("type=cahce,target=/x", 'unsupported mount type "cahce" (did you mean cache?)'),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("target=/x,sorce=y", "unexpected key 'sorce' in 'target=/x,sorce=y' (did you mean source?)"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        ("target=/x,size=1", "unexpected key 'size' for mount type 'bind'"),
        ("target=/x,sharing=shared", "unexpected key 'sharing' for mount type 'bind'"),
        (
            "type=cache,target=/x,sharing=mine",
            'unsupported sharing value "mine": expected shared, private, locked',
        ),
        ("target=/x,uid=1", "unexpected key 'uid' for mount type 'bind'"),
        ("type=cache,target=/x,uid=-1", "invalid value -1 for uid: expected e.g. 1000"),
        ("type=cache,target=/x,mode=8", "invalid value 8 for mode: expected e.g. 0755"),
        ("type=cache,target=/x,mode=77777", "invalid value 77777 for mode: at most 07777"),
        ("target=/x,ro=maybe", "invalid value for readonly: maybe: expected true or false"),
        ("type=tmpfs,target=/x,size=big", "invalid value for size: big: expected a size, e.g. 64m"),
        ("type=secret", "invalid secret mount: one of id, source, target required, e.g. id=token"),
        ("type=secret,id=a,source=b", "secret mount: both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=ssh,source=a", "ssh mount does not support source"),
        ('"target=/x', "--mount: not a list of key=value with commas between them"),
    ],
)
def test_a_mount_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_mount(text, lambda value: value)
    assert message in caught.value.problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://example.com/foo.git", ("https://example.com/foo.git", "", "")),
        ("https://example.com/foo.git#v1", ("https://example.com/foo.git", "v1", "")),
        (
            "https://example.com/foo.git#release/1.2:a/b",
            ("https://example.com/foo.git", "release/1.2", "a/b"),
        ),
        ("https://example.com/foo.git#:dir", ("https://example.com/foo.git", "", "dir")),
        ("https://u:p@example.com/foo.git", ("https://u:p@example.com/foo.git", "", "")),
        ("git://example.com/foo", ("git://example.com/foo", "", "")),
        ("ssh://git@example.com:22/foo", ("ssh://git@example.com:22/foo", "", "")),
        ("git@example.com:a/b", ("git@example.com:a/b", "", "")),
        ("git@example.com:a/b.git?subdir=/x#v1", ("git@example.com:a/b.git", "v1", "x")),
        ("https://h/x.git?tag=v1", ("https://h/x.git", "refs/tags/v1", "")),
        ("https://h/x.git?branch=b&subdir=../../x", ("https://h/x.git", "refs/heads/b", "x")),
        ("https://h/x.git?ref=a#a", ("https://h/x.git", "a", "")),
    ],
)
def test_an_address_of_a_repository_is_understood(text: str, said: tuple[str, str, str]) -> None:
    source = parse_git_url(text)
    assert source is not None
    assert (source.url, source.ref, source.subdirectory) == said


@pytest.mark.parametrize(
    "text",
    ["https://example.com/", "https://example.com/foo", "https://example.com/foo.git/", "./a.git", "../x", ".git",
     "github.com/moby/moby", "custom.xyz/a/b.git", "http://[bad/x.git", "file:///x.git", "a b", "ftp://h/x.git"],
)  # fmt: skip
def test_other_words_are_no_repository(text: str) -> None:
    assert parse_git_url(text) is None


def test_a_context_may_leave_out_the_scheme_of_github() -> None:
    source = parse_git_url("github.com/moby/moby?tag=v1", is_context=True)
    assert source is not None
    assert (source.url, source.ref) == ("https://github.com/moby/moby", "refs/tags/v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/x.git?ref=a#b", "ref conflicts: a and b in https://h/x.git"),
        ("https://h/x.git?tag=a&branch=b", "ref conflicts: refs/heads/b and refs/tags/a"),
        ("https://h/x.git?subdir=a#b:c", "subdir conflicts: a and c"),
        ("https://h/x.git?what=a", 'unexpected query "what" in https://h/x.git: there are ref, tag'),
        ("https://h/x.git?ref=", 'query "ref" has no value'),
        ("https://h/x.git?ref=a&ref=b", 'query "ref" has multiple values'),
        ("https://h/x.git?checksum=xyz", "checksum xyz of https://h/x.git isn't a commit"),
        ("https://h/x.git?keep-git-dir=maybe", 'invalid keep-git-dir value: "maybe"'),
        ("https://h/x.git#--upload-pack=x", "'--upload-pack=x' isn't a branch, tag or commit"),
        ("https://h/x.git#a..b~1", "isn't a branch, tag or commit"),
    ],
)
def test_an_address_that_contradicts_itself_is_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_git_url(text)
    assert message in caught.value.problem


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux", "linux/riscv64"),
        ("windows", "windows/riscv64"),
        ("LINUX/AMD64/V2", "linux/amd64/v2"),
        ("linux/somethingnew", "linux/somethingnew"),
    ],
)
def test_a_platform_is_normalized(text: str, platform: str) -> None:
    assert str(parse_platform(text, Platform("linux", "riscv64"))) == platform


@pytest.mark.parametrize("text", ["", "linux/", "a/b/c/d", "linux/a b", "nothing"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(DockerfileError):
        parse_platform(text, Platform("linux", "amd64"))


def test_durations_modes_and_signals() -> None:
    assert duration_ns("x", "1h2m3.5s") == 3723500000000
    assert duration_ns("x", "0") == 0
    assert duration_ns("x", "1500µs") == 1500000
    for text in ("", "5", "-1s", "1d", "1us", "99999999999h", "1s x"):
        with pytest.raises(DockerfileError):
            duration_ns("x", text)
    for mode in ("0", "755", "07777", "u=rwx,go=rx", "a+X", "+x", "u+rw-x", "g=u", "o=t"):
        check_mode(mode)
    for mode in ("888", "10000", "rwx", "u=q", "7x", "=", ",", "u=rwx," * 30):
        if mode != "=":
            with pytest.raises(DockerfileError):
                check_mode(mode)
    for signal in ("TERM", "sigterm", "9", "SIGRTMIN+3", "RTMAX-2", "SIGRTMIN"):
        assert stop_signal(signal) == signal
    for signal in ("", "0", "65", "TERMINATE", "RTMIN-1", "RTMIN+31", "SIGRTMAX+1"):
        with pytest.raises(DockerfileError):
            stop_signal(signal)
