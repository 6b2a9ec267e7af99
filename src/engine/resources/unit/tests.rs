use super::*;
use crate::engine::resources::testing::{Root, root};

/// A systemctl that keeps one service's state in files.
const SYSTEMCTL: &str = r#"s=$ROOT/state; mkdir -p "$s" "$ROOT/etc/systemd/system/multi-user.target.wants"
echo "$*" >>"$ROOT/log"
case "$*" in
*"show --timestamp"*)
  echo LoadState=loaded
  if [ -e "$s/started" ]; then echo ActiveState=active; echo SubState=running
    echo "ExecMainStartTimestamp=$(cat "$s/started")"
  else echo ActiveState=inactive; echo SubState=dead; echo ExecMainStartTimestamp=; fi
  [ -e "$s/stale" ] && echo NeedDaemonReload=yes || echo NeedDaemonReload=no;;
*show*ActiveState*) if [ -e "$s/broken" ]; then echo failed; else echo active; fi;;
*daemon-reload*) rm -f "$s/stale";;
*enable*) ln -sf /x "$ROOT/etc/systemd/system/multi-user.target.wants/a.service";;
*disable*) rm -f "$ROOT"/etc/systemd/system/multi-user.target.wants/a.service;;
*stop*) rm -f "$s/started";;
*restart*|*start*) date -u '+%a %Y-%m-%d %H:%M:%S.%6N UTC' >"$s/started";;
esac
"#;

fn node() -> Root {
    let root = root();
    root.fake("systemctl", SYSTEMCTL);
    root
}

/// Only what changes things.
fn verbs(root: &Root) -> Vec<String> {
    let log = root.get("/log");
    std::fs::remove_file(root.path("/log")).unwrap();
    log.lines().filter(|l| !l.contains("show")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_unit_is_enabled_and_started() {
    let root = node();
    let unit = Unit::new("a");
    assert_eq!(
        root.converges(&unit).await,
        ["at boot: disabled -> enabled", "state: inactive (dead) -> active"]
    );
    assert_eq!(verbs(&root), ["--no-reload -q enable a.service", "start a.service"]);
    let off = Unit::new("a").disabled().stopped();
    root.converges(&off).await;
    root.is_same(&off).await;
}

#[tokio::test]
async fn a_unit_restarts_once_when_a_file_it_reads_changed_after_its_start() {
    let root = node();
    root.put("/etc/a.conf", "1");
    let unit = Unit::new("a").reads(["/etc/a.conf", "/etc/absent.conf"]);
    root.converges(&unit).await;
    root.put("/etc/a.conf", "2");
    let sight = root.look(&unit).await;
    assert!(unit.restarts(&sight.seen));
    let said = root.converges(&unit).await;
    assert_eq!(said, ["/etc/a.conf changed after it started"]);
    assert_eq!(verbs(&root).last().unwrap(), "restart a.service");
    root.is_same(&unit).await;
}

#[tokio::test]
async fn a_changed_unit_file_is_reloaded_and_the_unit_restarted() {
    let root = node();
    let unit = Unit::new("a");
    root.converges(&unit).await;
    root.put("/state/stale", "");
    assert_eq!(root.converges(&unit).await, ["its unit file changed on disk"]);
    assert_eq!(verbs(&root)[2..], ["daemon-reload", "restart a.service"]);
}

#[tokio::test]
async fn a_masked_unit_is_unmasked() {
    let root = node();
    std::fs::create_dir_all(root.path("/etc/systemd/system")).unwrap();
    let link = root.path("/etc/systemd/system/a.service");
    std::os::unix::fs::symlink("/dev/null", link).unwrap();
    assert_eq!(root.converges(&Unit::new("a")).await[0], "masked");
}

#[tokio::test]
async fn a_unit_that_fails_while_it_is_waited_for_ends_the_wait() {
    let root = node();
    root.put("/state/broken", "");
    root.put("/proc/net/tcp", "");
    let unit = Unit::new("a").ready(Ready::Port(5000));
    let seen = root.look(&unit).await.seen;
    let piece = root.apply(&unit, &seen).await;
    assert_eq!(piece.status, 1);
    assert_eq!(piece.stderr_tail(1), ["a.service ended instead of becoming ready"]);
}

#[tokio::test]
async fn a_unit_that_never_gets_ready_fails_with_what_was_waited_for() {
    let root = node();
    let unit = Unit::new("a").ready(Ready::Command("false".into()));
    let seen = root.look(&unit).await.seen;
    let piece = root.apply(&unit, &seen).await;
    assert_eq!(piece.status, 1);
    assert_eq!(piece.stderr_tail(1), ["a.service not ready after 5 s: command false"]);
}

#[tokio::test]
async fn readiness_is_observed_and_waited_for() {
    let root = node();
    let unit = Unit::new("a").ready(Ready::Command("[ -e \"$ROOT/up\" ]".into()));
    root.put("/up", "");
    root.converges(&unit).await;
    std::fs::remove_file(root.path("/up")).unwrap();
    let sight = root.look(&unit).await;
    assert!(matches!(&sight.verdict, Verdict::Differs(l) if l[0].starts_with("not ready")));
    assert!(!unit.restarts(&sight.seen));
}

#[test]
fn times_are_compared_in_microseconds() {
    let t = timestamp("Sat 2026-11-21 10:48:14.123456 UTC");
    assert_eq!(t, seconds("1795258094.123456"));
    assert_eq!(timestamp("Thu 1970-01-01 00:00:00.5 UTC"), Some(500_000));
    assert_eq!(timestamp("Thu 2024-02-29 00:00:00 UTC"), seconds("1709164800"));
    assert_eq!(timestamp(""), None);
    assert_eq!(timestamp("n/a"), None);
}

#[test]
fn one_observation_is_cut_to_each_unit_in_order() {
    let printed = b"LoadState=loaded\nActiveState=active\n\nLoadState=not-found\n\
        ActiveState=inactive\n\n@enabled\nyes\nno\n@ready\nyes\nno\n@reads\n 1\n12.5\n";
    let cut = split(printed, &["a.service\t\t/x\t/y", "b.service\tport 1\t/x"]);
    assert!(cut[0].contains("ActiveState=active") && cut[0].contains("read=12.5 /y"), "{cut:?}");
    assert!(cut[1].contains("LoadState=not-found") && !cut[1].contains("read="), "{cut:?}");
    assert!(cut[0].contains("enabled=yes") && cut[1].contains("ready=no"), "{cut:?}");
}
