import subprocess
import sys


def test_without_the_extra_it_says_what_to_install(tmp_path):
    script = (
        "import sys; sys.modules['pyarrow'] = sys.modules['sklearn'] = None\n"
        "from vitconv.cli import app\n"
        "app(['predict', 'folder', 'list.csv', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: predict needs packages that are not installed: pyarrow.\n"
        "Install them with pip install -e '.[evaluate]' in vitconv's clone.\n"
    )


def test_converting_does_not_import_the_evaluation_libraries():
    script = (
        "import sys; import vitconv.convert, vitconv.cli\n"
        "print([name for name in ('pyarrow', 'torchmetrics', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_evaluation_says_what_is_missing_when_it_is_called():
    script = (
        "import sys; sys.modules['jinja2'] = sys.modules['sklearn'] = None\n"
        "from vitconv.evaluation import evaluate, report\n"
        "for call in (evaluate, report):\n"
        "    try: call('a', 'b')\n"
        "    except Exception as error: print(type(error).__name__, error.problem)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(
        f"InputError {name} needs packages that are not installed: jinja2, sklearn.\n"
        for name in ("evaluate", "report")
    )
