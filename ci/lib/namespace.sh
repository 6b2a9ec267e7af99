# shellcheck shell=bash
# Functions that make a root folder out of mounts and change into it. They run inside a mount
# namespace (see ci/bare-root and ci/nix-sandbox): the mounts end with it.

die() {
    echo "error: $1" >&2
    [ -z "${2:-}" ] || echo "hint: $2" >&2
    exit 1
}

# need PROGRAM PACKAGE...
need() {
    command -v "$1" >/dev/null || die "there is no program $1" "apt-get install ${2:-$1}"
}

# bind SOURCE TARGET [ro]: makes the target, a folder or a file, where it is missing.
bind() {
    local source=$1 target=$2 mode=${3:-rw} flags=bind,ro flag has
    if [ -d "$source" ]; then
        mkdir -p "$target"
    else
        mkdir -p "$(dirname "$target")"
        [ -e "$target" ] || : >"$target"
    fi
    mount --bind "$source" "$target"
    [ "$mode" = ro ] || return 0
    # A user namespace may not take away the flags of a mount that it inherits.
    has=$(findmnt --noheadings --first-only --output VFS-OPTIONS --target "$source")
    for flag in nosuid nodev noexec noatime relatime; do
        [[ ",$has," != *",$flag,"* ]] || flags+=,$flag
    done
    mount -o "remount,$flags" "$target"
}

# devices ROOT [DEVICE...]: a /dev of its own, with the devices that are named where they exist.
devices() {
    local root=$1 device
    shift
    mkdir -p "$root/dev"
    mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
    for device in null zero full random urandom tty "$@"; do
        [ ! -e "/dev/$device" ] || bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev,size=64m tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    ln -s /proc/self/fd/0 "$root/dev/stdin"
    ln -s /proc/self/fd/1 "$root/dev/stdout"
    ln -s /proc/self/fd/2 "$root/dev/stderr"
}

# change_root ROOT: nothing of the old root can be reached after it. chroot would not do: the kernel
# refuses user namespaces to a process whose root is not a mount point.
change_root() {
    cd "$1" || die "cannot change into $1"
    pivot_root . .
    umount --lazy .
    cd / || die 'cannot change into the new root'
    hash -r
}

# start COMMAND...: runs it and waits. A signal ends all that it started, where COMMAND is
# `unshare --pid --fork --kill-child`: its child is the first process of the namespace. So does the
# death of this shell.
start() {
    local status=0
    setpriv --pdeathsig KILL "$@" &
    started=$!
    trap 'stop; exit 130' INT TERM HUP
    wait "$started" || status=$?
    trap - INT TERM HUP
    return "$status"
}

stop() {
    local first
    first=$(cat "/proc/$started/task/$started/children" 2>/dev/null || true)
    # Without a trap of its own, the first process of a namespace obeys no other signal.
    # shellcheck disable=SC2086
    kill -KILL ${first:-$started} 2>/dev/null || true
    # It ends after all processes of its namespace.
    wait "$started" 2>/dev/null || true
}

# The processes of the namespace beside this shell: what a test has left behind.
left_running() {
    local folder pid line
    for folder in /proc/[0-9]*; do
        pid=${folder#/proc/}
        # A process that has ended has no command line. The shell is the first process.
        line=$(tr '\0' ' ' 2>/dev/null <"$folder/cmdline") || true
        if [ -n "$line" ] && [ "$pid" != 1 ]; then
            echo "left running: $pid $line"
        fi
    done
}
