//! systemd units.

use crate::engine::quote;
use crate::engine::resource::{Resource, Script, SharedProbe, Verdict};
use std::collections::HashMap;
use std::fmt::Write;

/// When a started unit can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Something listens on this TCP port.
    Port(u16),
    /// This unix socket is there.
    Socket(String),
    /// This shell command exits with 0. No secrets in it.
    Command(String),
}

/// A unit, by default enabled and running. It is restarted when a file that it reads changed after
/// it started; both times are the node's own, in microseconds, nothing is remembered by us. A
/// unit file changed on disk is reloaded and its unit restarted. A oneshot unit must have
/// `RemainAfterExit=yes`, or there is nothing to observe.
#[derive(Clone, Debug)]
pub struct Unit {
    name: String,
    enabled: Option<bool>,
    running: Option<bool>,
    reads: Vec<String>,
    ready: Option<Ready>,
    patience: u64,
}

/// File times are taken from a clock that ticks every 4 ms: a file written just after a start may
/// bear a time just before it.
const TICK_US: i64 = 4_000;

impl Unit {
    /// Without a suffix, `.service` is meant.
    pub fn new(name: impl Into<String>) -> Unit {
        Unit {
            name: with_suffix(&name.into()),
            enabled: Some(true),
            running: Some(true),
            reads: Vec::new(),
            ready: None,
            patience: 60,
        }
    }
    pub fn disabled(mut self) -> Unit {
        self.enabled = Some(false);
        self
    }
    pub fn stopped(mut self) -> Unit {
        self.running = Some(false);
        self
    }
    /// Whether it starts at boot is left as it is.
    pub fn enabled_or_not(mut self) -> Unit {
        self.enabled = None;
        self
    }
    /// Whether it runs is left as it is (a oneshot without `RemainAfterExit`).
    pub fn running_or_not(mut self) -> Unit {
        self.running = None;
        self
    }
    /// Files read at start; for a directory, the adding and removing of names in it.
    pub fn reads<P: Into<String>>(mut self, paths: impl IntoIterator<Item = P>) -> Unit {
        self.reads.extend(paths.into_iter().map(Into::into));
        self
    }
    pub fn ready(mut self, ready: Ready) -> Unit {
        self.ready = Some(ready);
        self
    }
    /// Seconds on the reference machine until it is up and ready. Default 60.
    pub fn patience(mut self, seconds: u64) -> Unit {
        self.patience = seconds;
        self
    }
}

pub(super) fn with_suffix(name: &str) -> String {
    const SUFFIXES: [&str; 6] = [".service", ".socket", ".target", ".timer", ".mount", ".path"];
    match SUFFIXES.iter().any(|s| name.ends_with(s)) {
        true => name.to_owned(),
        false => format!("{name}.service"),
    }
}

/// All units of a node: one `systemctl show`, one `stat`; the rest is the shell's own work.
static UNITS: SharedProbe = SharedProbe { name: "units", script, split };

/// A subject: unit, readiness and files read, separated by tabs.
fn parts(subject: &str) -> (&str, &str, impl Iterator<Item = &str>) {
    let mut fields = subject.split('\t');
    let unit = fields.next().unwrap_or_default();
    (unit, fields.next().unwrap_or_default(), fields)
}

fn all_reads<'a>(subjects: &[&'a str]) -> Vec<&'a str> {
    let mut reads: Vec<&str> = subjects.iter().flat_map(|s| parts(s).2).collect();
    reads.sort_unstable();
    reads.dedup();
    reads
}

/// Prints `ready` if the condition holds: shared by observation and by the wait after a start.
fn ready_check(ready: &str) -> String {
    match ready.split_once(' ') {
        Some(("port", port)) => format!("listens {port}"),
        Some(("socket", path)) => format!("[ -S {} ]", quote::path(path)),
        Some(("command", command)) => format!("( {command}\n) >/dev/null 2>&1"),
        _ => "true".into(),
    }
}

/// `listens PORT`, without a fork: 0A is LISTEN.
pub(super) const LISTENS: &str = r#"listens() {
  h=$(printf %04X "$1")
  for f in "$ROOT"/proc/net/tcp "$ROOT"/proc/net/tcp6; do
    [ -r "$f" ] || continue
    while read -r _ local _ state _; do
      case $state$local in 0A*:$h) return 0;; esac
    done <"$f"
  done
  return 1
}
"#;

fn script(subjects: &[&str]) -> Script {
    let units = subjects.iter().map(|s| parts(s).0);
    let mut shell = String::from(LISTENS);
    let _ = writeln!(
        shell,
        "systemctl show --timestamp=us+utc -p Id -p LoadState -p ActiveState -p SubState \
         -p SourcePath -p NeedDaemonReload -p ExecMainStartTimestamp -p InactiveExitTimestamp {}\n\
         echo; echo @enabled",
        quote::words(units.clone())
    );
    shell.push_str(
        r#"enabled() {
  [ "$ROOT/etc/systemd/system/$1" -ef /dev/null ] && { echo masked; return; }
  for f in "$ROOT"/etc/systemd/system/*.wants/"$1" "$ROOT"/etc/systemd/system/*.requires/"$1" \
    "$ROOT"/usr/lib/systemd/system/*.wants/"$1"; do
    [ -L "$f" ] && { echo yes; return; }
  done
  for f in "$ROOT"/etc/rc[2345].d/S[0-9][0-9]"${1%.service}"; do
    [ -e "$f" ] && { echo sysv; return; }
  done
  echo no
}
"#,
    );
    for unit in units {
        let _ = writeln!(shell, "enabled {}", quote::word(unit));
    }
    shell.push_str("echo @ready\n");
    for subject in subjects {
        let _ = writeln!(
            shell,
            "if {}; then echo yes; else echo no; fi",
            ready_check(parts(subject).1)
        );
    }
    shell.push_str("echo @reads\nset --");
    for path in all_reads(subjects) {
        let _ = write!(shell, " {}", quote::path(path));
    }
    shell.push_str(
        r#"
i=0 k=
for p do
  shift
  [ -e "$p" ] && { set -- "$@" "$p"; k="$k $i"; }
  i=$((i+1))
done
echo "$k"
[ $# -eq 0 ] || stat -L -c %.6Z -- "$@"
"#,
    );
    Script::new(shell)
}

/// For each subject: systemctl's properties, then `enabled=`, `ready=` and `read=TIME PATH` lines.
fn split(printed: &[u8], subjects: &[&str]) -> Vec<String> {
    let printed = String::from_utf8_lossy(printed);
    let section = |name: &str| -> &str {
        let Some((_, after)) = printed.split_once(&format!("\n@{name}\n")) else { return "" };
        after.split("\n@").next().unwrap_or_default()
    };
    let shown = printed.split("\n@enabled\n").next().unwrap_or_default();
    let shown: Vec<&str> = shown.split("\n\n").map(str::trim).filter(|b| !b.is_empty()).collect();
    let enabled: Vec<&str> = section("enabled").lines().collect();
    let ready: Vec<&str> = section("ready").lines().collect();
    let mut reads = section("reads").lines();
    let there = reads.next().unwrap_or_default().split_ascii_whitespace();
    let all = all_reads(subjects);
    let times: HashMap<&str, &str> =
        there.filter_map(|i| all.get(i.parse::<usize>().ok()?).copied()).zip(reads).collect();
    let mut out = Vec::new();
    for (i, subject) in subjects.iter().enumerate() {
        let mut text = String::new();
        // Blocks come in the order of the arguments, one for each.
        if shown.len() == subjects.len() {
            text.push_str(shown[i]);
            text.push('\n');
        }
        let _ = writeln!(text, "enabled={}", enabled.get(i).unwrap_or(&""));
        let _ = writeln!(text, "ready={}", ready.get(i).unwrap_or(&""));
        for path in parts(subject).2 {
            if let Some(time) = times.get(path) {
                let _ = writeln!(text, "read={time} {path}");
            }
        }
        out.push(text);
    }
    out
}

/// What is to be done to a unit, from what was seen of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Work {
    differences: Vec<String>,
    unmask: bool,
    reload: bool,
    enable: Option<bool>,
    start: bool,
    restart: bool,
    stop: bool,
}

impl Unit {
    fn ready_text(&self) -> String {
        match &self.ready {
            None => String::new(),
            Some(Ready::Port(port)) => format!("port {port}"),
            Some(Ready::Socket(path)) => format!("socket {path}"),
            Some(Ready::Command(command)) => format!("command {command}"),
        }
    }

    fn work(&self, seen: &str) -> Work {
        let fields: HashMap<&str, &str> = seen.lines().filter_map(|l| l.split_once('=')).collect();
        let get = |key: &str| fields.get(key).copied().unwrap_or_default();
        let mut work = Work::default();
        let mut say = |text: String| work.differences.push(text);
        let state = get("ActiveState");
        if state.is_empty() {
            say("systemctl says nothing of it".into());
        }
        if get("LoadState") == "not-found" && self.running != Some(false) {
            say("no such unit".into());
            work.reload = true;
        }
        // No difference by itself: enabling any unit sets it on all of them. A drop-in that is
        // declared stands in `reads`, and its change is seen there.
        if get("NeedDaemonReload") == "yes" {
            work.reload = true;
        }
        let at_boot = get("enabled");
        if at_boot == "masked" && (self.running == Some(true) || self.enabled == Some(true)) {
            say("masked".into());
            work.unmask = true;
            work.reload = true;
        }
        let enabled = at_boot == "yes"
            || (at_boot == "sysv" && get("SourcePath").starts_with("/etc/init.d/"));
        if let Some(want) = self.enabled
            && want != enabled
        {
            let word = |e: bool| if e { "enabled" } else { "disabled" };
            say(format!("at boot: {} -> {}", word(enabled), word(want)));
            work.enable = Some(want);
        }
        match self.running {
            Some(true) if state == "active" => {
                let main = timestamp(get("ExecMainStartTimestamp"));
                let started = main.or(timestamp(get("InactiveExitTimestamp")));
                for line in seen.lines() {
                    let Some((time, path)) =
                        line.strip_prefix("read=").and_then(|l| l.split_once(' '))
                    else {
                        continue;
                    };
                    if let (Some(started), Some(changed)) = (started, seconds(time))
                        && changed + TICK_US > started
                    {
                        work.differences.push(format!("{path} changed after it started"));
                        work.restart = true;
                    }
                }
                if get("ready") == "no" {
                    work.differences.push(format!("not ready: {}", self.ready_text()));
                    // It may still be on its way: it is waited for, not restarted.
                    work.start = true;
                }
            }
            Some(true) => {
                say(format!("state: {state} ({}) -> active", get("SubState")));
                work.start = true;
                work.restart = false;
            }
            Some(false) => {
                work.restart = false;
                if !matches!(state, "inactive" | "failed" | "") {
                    say(format!("state: {state} -> inactive"));
                    work.stop = true;
                }
            }
            None => work.restart = false,
        }
        work
    }
}

/// `Sat 2026-11-21 10:48:14.123456 UTC` as microseconds since the epoch.
fn timestamp(text: &str) -> Option<i64> {
    let mut fields = text.split(' ').skip(1);
    let (date, time) = (fields.next()?, fields.next()?);
    let mut ymd = date.split('-').map(str::parse::<i64>);
    let (y, m, d) = (ymd.next()?.ok()?, ymd.next()?.ok()?, ymd.next()?.ok()?);
    let (hms, micros) = time.split_once('.').unwrap_or((time, "0"));
    let mut hms = hms.split(':').map(str::parse::<i64>);
    let (h, min, s) = (hms.next()?.ok()?, hms.next()?.ok()?, hms.next()?.ok()?);
    // Days since 1970-01-01 of a Gregorian date, counting years from March.
    let (y, m) = if m > 2 { (y, m - 3) } else { (y - 1, m + 9) };
    let days =
        365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + d
            - 1
            - 719_468;
    let micros: i64 = format!("{micros:0<6}").get(..6)?.parse().ok()?;
    Some(((days * 24 + h) * 60 + min) * 60_000_000 + s * 1_000_000 + micros)
}

/// `1763722094.123456` as microseconds since the epoch.
fn seconds(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let micros: i64 = format!("{part:0<6}").get(..6)?.parse().ok()?;
    Some(whole.parse::<i64>().ok()? * 1_000_000 + micros)
}

impl Resource for Unit {
    fn id(&self) -> String {
        format!("unit {}", self.name)
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        let mut subject = format!("{}\t{}", self.name, self.ready_text());
        for path in &self.reads {
            subject.push('\t');
            subject.push_str(path);
        }
        Some((&UNITS, subject))
    }
    fn judge(&self, seen: &str) -> Verdict {
        Verdict::from_lines(self.work(seen).differences)
    }
    fn apply(&self, seen: &str) -> Script {
        let work = self.work(seen);
        let unit = quote::word(&self.name);
        let mut shell = String::from(LISTENS);
        if work.unmask {
            let _ = writeln!(shell, "rm -f \"$ROOT\"/etc/systemd/system/{unit}");
        }
        if work.reload {
            shell.push_str("systemctl daemon-reload || exit 1\n");
        }
        match work.enable {
            // SysV links of a native unit mean nothing, and making them starts perl.
            Some(true) => {
                let _ = writeln!(
                    shell,
                    "export SYSTEMCTL_SKIP_SYSV=1\nsystemctl --no-reload -q enable {unit} || exit 1\n\
                     e=; for f in \"$ROOT\"/etc/systemd/system/*.wants/{unit} \
                     \"$ROOT\"/etc/systemd/system/*.requires/{unit}; do [ -L \"$f\" ] && e=1; done\n\
                     [ -n \"$e\" ] || systemctl --no-reload -q add-wants multi-user.target {unit} || exit 1"
                );
            }
            Some(false) => {
                let _ = writeln!(shell, "systemctl --no-reload -q disable {unit} || exit 1");
            }
            None => {}
        }
        if work.stop {
            let _ = writeln!(shell, "systemctl stop {unit} || exit 1");
        }
        if seen.contains("ActiveState=failed") && work.start {
            let _ = writeln!(shell, "systemctl reset-failed {unit}");
        }
        if work.start || work.restart {
            let verb = if work.restart { "restart" } else { "start" };
            let _ = writeln!(shell, "systemctl {verb} {unit} || exit 1");
            let _ = write!(
                shell,
                r#"up() {{ read -r u _ </proc/uptime; u=${{u%%.*}}; }}
up; end=$((u + LIMIT))
until {check}; do
  case $(systemctl show -p ActiveState --value {unit}) in
    failed|inactive) echo {unit}" ended instead of becoming ready" >&2; exit 1;;
  esac
  up; [ "$u" -lt "$end" ] || {{ echo {unit}" not ready after $LIMIT s: "{what} >&2; exit 1; }}
  sleep 0.3
done
"#,
                check = ready_check(&self.ready_text()),
                what = quote::word(&self.ready_text()),
            );
        }
        Script::new(shell)
    }
    fn patience(&self) -> u64 {
        self.patience
    }
    fn reads(&self) -> Vec<String> {
        self.reads.clone()
    }
    fn restarts(&self, seen: &str) -> bool {
        self.work(seen).restart
    }
    fn evidence(&self) -> Option<Script> {
        let unit = quote::word(&self.name);
        Some(Script::new(format!(
            "systemctl show -p ActiveState -p SubState -p Result -p ExecMainStatus -p NRestarts {unit}\n\
             journalctl -q --no-pager -o short-iso -n 40 -u {unit}"
        )))
    }
}

#[cfg(test)]
mod tests;
