# Functions of the other scripts, which source this file.

# Print a command, quoted for a shell, then run it.
run() {
    printf '\n$'
    for word in "$@"; do
        case "$word" in
            *[!A-Za-z0-9_./=:,@%+-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

# Whether $1 is a Python that vaebench supports.
supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

# Print the path of Python: $PYTHON if set, else the first supported one.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" && echo "$PYTHON" && return
        echo "PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13 ($("$PYTHON" --version 2>&1 | head -n 1))" >&2
        return 2
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        supported "$candidate" && echo "$candidate" && return
    done
    echo "vaebench needs Python 3.11, 3.12 or 3.13, and python3 is $(python3 --version 2>&1 || true)." >&2
    echo "Install one of them, then run: PYTHON=/path/to/python3.12 $0" >&2
    return 2
}

# Make the virtual environment $1, unless it exists and works.
make_venv() {
    if supported "$1/bin/python" && "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python="$(find_python)" || return 2
    run "$python" -m venv --clear "$1" || {
        echo "Python could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2
        return 2
    }
}

# Install packages ($2 ...) with apt-get, named $1 on the screen. Needs root and a package mirror.
install_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $1 with apt-get"
    shift
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get -qq update >/dev/null 2>&1 || echo "apt-get update failed; trying without it" >&2
    timeout 600 apt-get -qq install --yes --no-install-recommends "$@" >/dev/null 2>&1
}

install_chromium() { install_packages "chromium and its driver" chromium chromium-driver; }

# Slurm with munge, and the database of its accounting.
install_slurm() {
    install_packages Slurm slurmctld slurmd slurm-client munge slurmdbd mariadb-server mariadb-client
}
