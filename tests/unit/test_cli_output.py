"""What commands print: templates as Go's, tables and wording as docker's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cove.cli import output
from cove.cli.containerlist import container_row, show_ports
from cove.cli.images import image_rows, split_reference
from cove.cli.plan import render_plan
from cove.cli.stats import cpu_percent, memory_used, stats_row
from cove.cli.template import TemplateError, apply_template, parse_template
from cove.model import wirejson

VALUE = {
    "Name": "web",
    "Ports": {"80/tcp": [{"HostPort": "8080"}], "53/udp": None},
    "List": ["a", "b"],
    "Yes": True,
    "Nothing": None,
    "Number": 3,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}}", "web"),
        ("{{json .List}}", '["a","b"]'),
        ("{{json .}}", wirejson.dumps(VALUE)),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range .List}}[{{.}}]{{end}}", "[a][b]"),
        ("{{range $i, $x := .List}}{{if $i}},{{end}}{{$x}}{{end}}", "a,b"),
        ("{{range $port, $to := .Ports}}{{$port}} {{end}}", "53/udp 80/tcp "),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ('{{if eq .Name "web" "db"}}yes{{else}}no{{end}}', "yes"),
        ("{{if .Missing}}a{{else if .Yes}}b{{else}}c{{end}}", "b"),
        ("{{with .Ports}}{{len .}}{{end}}", "2"),
        ('{{.Name | upper | printf "%-5s|"}}', "WEB  |"),
        ('{{join .List ", "}} {{lower "ABC"}}', "a, b abc"),
        ("{{if and .Yes (not .Missing)}}ok{{end}}", "ok"),
        ("{{$x := .Name}}<{{$x}}>", "<web>"),
        ("{{range $port := .List}}{{$.Name}}{{end}}{{$x := .Ports}}{{len $x}}", "webweb2"),
        ("{{.List}} {{.Yes}} {{.Nothing}} {{.Missing.Deeper}}", "[a b] true <no value> <no value>"),
        ("a {{- .Name -}} b", "awebb"),
        ("{{/* a remark */}}x", "x"),
        ("{{if gt .Number 2}}many{{end}}", "many"),
    ],
)
def test_templates_mean_what_they_mean_in_go(template: str, text: str) -> None:
    assert apply_template(parse_template(template), VALUE) == text


@pytest.mark.parametrize(
    "template",
    [
        "{{.Name",
        "{{end}}",
        "{{range .List}}",
        "{{}}",
        "{{.Name | }}",
        "{{(.Name}}",
        "{{foo .}}",
        "{{.Name .List}}",
        '{{"x}}',
    ],
)
def test_a_wrong_template_is_an_error_with_a_sentence(template: str) -> None:
    with pytest.raises(TemplateError, match="--format: "):
        apply_template(parse_template(template), VALUE)


def test_an_unknown_field_of_a_row_names_the_fields_there_are() -> None:
    with pytest.raises(TemplateError, match=r"\.Nmae: no such field; there are List, Name"):
        apply_template(parse_template("{{.Nmae}}"), VALUE, strict=True)


@given(st.text(alphabet='{}.$ |()"`abjsonrangeendif:=,-', max_size=40))
def test_no_template_breaks_the_reader(template: str) -> None:
    try:
        apply_template(parse_template("{{" + template + "}}"), VALUE)
    except TemplateError:
        pass


def test_rows_print_as_a_table_a_template_json_or_ids(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"ID": "1", "Name": "web"}, {"ID": "22", "Name": "db"}]
    columns = (("ID", "CONTAINER ID"), ("Name", "NAMES"))
    output.print_rows(rows, columns)
    assert capsys.readouterr().out == "CONTAINER ID   NAMES\n1              web\n22             db\n"
    output.print_rows(rows, columns, format="json")
    assert capsys.readouterr().out == '{"ID":"1","Name":"web"}\n{"ID":"22","Name":"db"}\n'
    output.print_rows(rows, columns, format="{{.Name}}-{{.ID}}")
    assert capsys.readouterr().out == "web-1\ndb-22\n"
    output.print_rows(rows, columns, format="table {{.Name}}\\t{{.ID}}")
    assert capsys.readouterr().out == "NAMES   CONTAINER ID\nweb     1\ndb      22\n"
    output.print_rows(rows, columns, quiet="ID")
    assert capsys.readouterr().out == "1\n22\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (3600 * 30, "30 hours"),
        (86400 * 5, "5 days"),
        (86400 * 20, "2 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 900, "2 years"),
    ],
)
def test_ages_are_worded_as_docker_words_them(seconds: int, text: str) -> None:
    assert output.human_duration(seconds) == text


def test_sizes_have_three_or_four_digits() -> None:
    assert [output.human_size(n) for n in (0, 999, 1000, 123_456_789, 5 * 10**15)] == [
        "0B",
        "999B",
        "1kB",
        "123MB",
        "5000TB",
    ]
    assert output.human_memory(512 * 1024 * 1024) == "512MiB"
    assert output.human_memory(1536) == "1.5KiB"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-31T09:30:00.123456789Z", 1769851800),
        ("2026-01-31T10:30:00+01:00", 1769851800),
        ("2024-02-29T00:00:00Z", 1709164800),
        ("0001-01-01T00:00:00Z", 0),
        ("yesterday", 0),
    ],
)
def test_times_of_the_api_are_read(text: str, seconds: float) -> None:
    assert output.parse_rfc3339(text) == seconds


def port(private: int, public: int = 0, ip: str = "0.0.0.0", kind: str = "tcp") -> dict[str, Any]:
    found: dict[str, Any] = {"PrivatePort": private, "Type": kind}
    return {**found, "PublicPort": public, "IP": ip} if public else found


def test_neighbouring_ports_become_a_range() -> None:
    assert show_ports([port(80, 8080), port(81, 8081), port(443)]) == "443/tcp, 0.0.0.0:8080-8081->80-81/tcp"
    assert show_ports([port(80, 8080), port(81, 9000)]) == "0.0.0.0:8080->80/tcp, 0.0.0.0:9000->81/tcp"
    assert show_ports([port(90), port(91), port(93)]) == "90-91/tcp, 93/tcp"
    assert show_ports([port(80, 80, "::")]) == "[::]:80->80/tcp"
    assert show_ports([]) == ""


def test_a_row_of_ps_is_short_unless_asked() -> None:
    summary = {
        "Id": "ab" * 32,
        "Names": ["/web"],
        "Image": "debian",
        "Command": "sleep 1000000000000000000",
        "Created": 1_700_000_000,
        "State": "running",
        "Status": "Up 2 hours",
        "Ports": [],
        "Labels": {"a": "b"},
    }
    row = container_row(summary, 1_700_007_200, whole=False)
    assert (row["ID"], row["Names"], row["RunningFor"]) == ("abababababab", "web", "2 hours ago")
    assert row["Command"] == '"sleep 1000000000000…"'
    whole = container_row(summary, 1_700_007_200, whole=True)
    assert (whole["ID"], whole["Command"]) == ("ab" * 32, '"sleep 1000000000000000000"')
    assert apply_template(parse_template('{{.Label "a"}}'), row, strict=True) == "b"


def test_an_image_has_a_row_for_each_name() -> None:
    image = {"Id": "sha256:" + "c" * 64, "RepoTags": ["a:1", "host:5000/b:2"], "Created": 0, "Size": 5}
    rows = image_rows(image, 0, whole=False, digests=False)
    assert [(row["Repository"], row["Tag"], row["ID"]) for row in rows] == [
        ("a", "1", "c" * 12),
        ("host:5000/b", "2", "c" * 12),
    ]
    assert image_rows({**image, "RepoTags": []}, 0, whole=False, digests=False)[0]["Repository"] == "<none>"
    assert split_reference("host:5000/b") == ("host:5000/b", "")


def test_a_plan_is_numbered_and_explained() -> None:
    steps = [
        {
            "section": "mounts",
            "kind": "mount",
            "describe": f"mount /run/{'0' * 64}/proc",
            "why": "ps needs it",
        },
        {"section": "mounts", "kind": "mount", "describe": "mount /dev", "why": "programs need it"},
        {"section": "mounts", "kind": "mount", "describe": "mount /dev/pts", "why": "programs need it"},
        {"section": "mounts", "kind": "mount", "describe": "mount sysfs"},
        {"section": "process", "kind": "exec", "describe": "exec bash", "why": ""},
    ]
    assert render_plan(steps, lambda text, code: text) == (
        "mounts:\n"
        "  1  mount /run/ID/proc\n"
        "       ps needs it\n"
        "  2  mount /dev\n"
        "  3  mount /dev/pts\n"
        "       programs need it\n"
        "  4  mount sysfs\n"
        "\n"
        "process:\n"
        "  5  exec bash\n"
    )
    assert render_plan([], lambda text, code: text) == ""


def test_statistics_follow_docker_s_arithmetic() -> None:
    before = {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000, "online_cpus": 2}
    now = {"cpu_usage": {"total_usage": 200}, "system_cpu_usage": 1400, "online_cpus": 2}
    assert cpu_percent(now, before) == 50.0
    assert cpu_percent(before, now) == 0.0
    assert memory_used({"usage": 100, "stats": {"inactive_file": 30}}) == 70
    assert memory_used({"usage": 100, "stats": {"total_inactive_file": 40, "inactive_file": 30}}) == 60
    assert memory_used({}) == 0


def test_pressure_is_shown_where_the_daemon_tells_it() -> None:
    assert "MemPressure" not in stats_row({"id": "x"}, whole=True)
    lines = {"some": {"avg10": 1.5}, "full": {"avg10": 0.25}}
    row = stats_row({"id": "x", "pressure_stats": {"memory": lines, "irq": lines}}, whole=True)
    assert row["MemPressure"] == "1.50% / 0.25%" and not [key for key in row if "rq" in key]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_comes_back_as_it_went(value: Any) -> None:
    assert wirejson.loads(wirejson.dumps(value)) == value
    assert wirejson.loads(wirejson.pretty(value)) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "{} x", "NaN", "'a'", '{"a":}', "tru"])
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        wirejson.loads(text)
