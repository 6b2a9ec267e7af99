//! Labs with an owner of their own, as people use them: through the program.

use super::test;
use crate::bench::{Bench, Dice, entries, lab, no_process_in, processes_in, run, signal};
use crate::dice::watches_signals;
use crate::registry::Test;
use rustix::process::Signal;
use stackproof::error::{Context, Error, Kind, Result};
use stackproof::images::digest::{Algorithm, Digest};
use stackproof::wait::{Death, Poll};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

pub const TESTS: &[Test] =
    &[
        test("owner::a_lab_is_lived_in_from_up_to_down", 2, || run(lived_in())),
        test("owner::killed_at_any_moment_leaves_nothing_and_its_name_works_again", 2, || {
            run(killed())
        }),
        test("owner::a_start_given_up_with_ctrl_c_leaves_nothing", 2, || run(given_up())),
        test("owner::a_restore_given_up_with_ctrl_c_at_any_moment_leaves_nothing", 1, || {
            run(restore_given_up())
        }),
        test("owner::a_lab_whose_machines_died_tells_why", 1, || run(machines_died())),
        test("owner::a_lab_is_taken_back_and_continued_beside_itself", 2, || run(taken_back())),
        test("owner::the_wire_is_divided_disturbed_and_captured", 2, || run(the_wire())),
    ];

/// One verb, on the reference machine: `up` boots, the others log in at most.
const UP: Duration = Duration::from_secs(120);
const VERB: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// So many moments are drawn.
const DRAWS: usize = 8;
/// Bytes of the file that is copied.
const SIZE: usize = 5 << 20;

/// A store of its own, with the built images of the real one.
struct Home {
    bench: Bench,
    store: PathBuf,
    file: PathBuf,
}

impl Home {
    async fn new(nodes: &[&str]) -> Result<Home> {
        let bench = Bench::new().await?;
        let store = bench.root().join("store");
        std::fs::create_dir(&store).doing(Kind::Host, || "a folder".into())?;
        let shared = crate::registry::store().expect("the registry looked").root().join("derived");
        std::os::unix::fs::symlink(shared, store.join("derived"))
            .doing(Kind::Host, || "a link".into())?;
        let file = bench.root().join("home.toml");
        std::fs::write(&file, lab("home", nodes)).doing(Kind::Host, || "a lab file".into())?;
        Ok(Home { bench, store, file })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stackproof"));
        command.args(["--root", env!("CARGO_MANIFEST_DIR"), "--store"]).arg(&self.store);
        command.arg("lab").args(args).current_dir(self.bench.root()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn up(&self) -> Command {
        let mut command = self.command(&["up", "--json", "--lab"]);
        command.arg(&self.file);
        command
    }

    /// Runs a verb to its end.
    async fn verb(&self, args: &[&str]) -> Result<Output> {
        self.ended(self.command(args), VERB).await
    }

    async fn ended(&self, mut command: Command, nominal: Duration) -> Result<Output> {
        let what = format!("{:?}", command.as_std().get_args().last().unwrap_or_default());
        let run = async { command.output().await.doing(Kind::Host, || "stackproof".into()) };
        self.bench.patience.within(&what, nominal, &Death::never(), run).await
    }

    /// Standard output of a verb that must do well.
    async fn ok(&self, args: &[&str]) -> Result<String> {
        let out = self.verb(args).await?;
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        Ok(text(&out.stdout))
    }

    async fn status(&self) -> Result<serde_json::Value> {
        let told = self.ok(&["status", "--json"]).await?;
        serde_json::from_str(&told).doing(Kind::Internal, || told)
    }

    fn runs(&self) -> PathBuf {
        self.store.join("runs")
    }

    /// Processes of the program that were given our store and one of these words.
    fn ours(&self, words: &[&str]) -> Vec<i32> {
        let store = self.store.as_os_str().as_encoded_bytes();
        let is_ours = |p: std::fs::DirEntry| {
            let pid = p.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(p.path().join("cmdline")).ok()?;
            let has = |word: &[u8]| line.split(|b| *b == 0).any(|w| w == word);
            (has(store) && words.iter().any(|w| has(w.as_bytes()))).then_some(pid)
        };
        std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(is_ours).collect()
    }

    fn owner(&self) -> Option<i32> {
        self.ours(&["own"]).pop()
    }

    fn is_up(&self) -> bool {
        let state = self.runs().join("labs/home/state.json");
        std::fs::read_to_string(state).is_ok_and(|s| s.contains("\"phase\":\"up\""))
    }

    async fn an_owner(&self) -> Result<i32> {
        let look = || async {
            match self.owner() {
                Some(pid) => Poll::Ready(pid),
                None => Poll::NotYet("no owner yet".into()),
            }
        };
        self.bench.patience.until("an owner", VERB, LOOK, &Death::never(), look).await
    }

    /// Waits until the program has come to where it watches for signals.
    async fn begun(&self, pid: i32) -> Result<()> {
        let look = || async {
            match watches_signals(pid) {
                true => Poll::Ready(()),
                false => Poll::NotYet("SIGINT is not caught".into()),
            }
        };
        self.bench.patience.until("the program to begin", VERB, LOOK, &Death::never(), look).await
    }

    /// Neither an owner nor one about to start.
    async fn no_owner(&self) -> Result<()> {
        let look = || async {
            match self.ours(&["own", "up"]).as_slice() {
                [] => Poll::Ready(()),
                left => Poll::NotYet(format!("processes {left:?}")),
            }
        };
        self.bench.patience.until("the owner to go", VERB, LOOK, &Death::never(), look).await
    }

    /// The start was given up, or the lab was up before that.
    async fn given_up_or_up(&self) -> Result<()> {
        let look = || async {
            if self.is_up() || self.ours(&["own"]).is_empty() {
                return Poll::Ready(());
            }
            Poll::NotYet("an owner that is still starting".into())
        };
        self.bench.patience.until("a decision", UP, LOOK, &Death::never(), look).await
    }

    /// What a look at /proc and at the disk tells, now.
    fn assert_nothing_runs(&self, when: &str) {
        assert_eq!(processes_in(&self.store), [] as [i32; 0], "{when}: machines are left");
        let runs = entries(&self.runs());
        assert!(runs.iter().all(|dir| dir == "labs"), "{when}: {runs:?}");
        let socket = self.runs().join("labs/home/control.sock");
        assert!(!socket.exists(), "{when}: a stale socket is left");
        let key = self.runs().join("labs/home/identity");
        assert!(!key.exists(), "{when}: a private key is left");
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).hex()
}

async fn lived_in() -> Result<()> {
    let home = Home::new(&["a", "b"]).await?;
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("boot"), "progress is shown: {}", text(&out.stderr));
    let up: serde_json::Value =
        serde_json::from_slice(&out.stdout).doing(Kind::Internal, || text(&out.stdout))?;
    assert_eq!((&up["name"], &up["phase"]), (&"home".into(), &"up".into()), "{up}");
    assert_eq!(processes_in(&home.store).len(), 2, "both machines outlive the command");

    let second = home.ended(home.up(), UP).await?;
    assert_eq!(second.status.code(), Some(5), "{}", text(&second.stderr));
    let pid = home.owner().expect("an owner").to_string();
    assert!(text(&second.stderr).contains(&format!("owned by process {pid}")));
    assert!(home.ok(&["ls"]).await?.contains(&pid));

    commands(&home).await?;
    copies(&home).await?;
    let shown = home.ok(&["console", "a", "--no-follow", "-n", "1000"]).await?;
    assert!(shown.contains("login as 'stack'"), "{shown}");
    ways_in(&home).await?;
    faults(&home).await?;

    let said = home.ok(&["down"]).await?;
    assert!(said.contains("lab home is gone"), "{said}");
    home.assert_nothing_runs("after down");
    assert_eq!(entries(&home.runs().join("labs")), [] as [String; 0]);
    assert_eq!(home.owner(), None);
    Ok(())
}

async fn commands(home: &Home) -> Result<()> {
    assert_eq!(home.ok(&["exec", "b", "--", "hostname"]).await?, "b\n");
    let quoted = home.ok(&["exec", "a", "--", "printf", "%s|", "two words", "$HOME"]).await?;
    assert_eq!(quoted, "two words|$HOME|", "words arrive as they are");
    let mut all = home.command(&["exec", "a", "--", "sh", "-c", "cat; echo err >&2; exit 7"]);
    let mut child = all.stdin(Stdio::piped()).spawn().doing(Kind::Host, || "exec".into())?;
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"through\0").await.doing(Kind::Host, || "standard input".into())?;
    drop(stdin);
    let out = async { child.wait_with_output().await.doing(Kind::Host, || "exec".into()) };
    let out = home.bench.patience.within("exec", VERB, &Death::never(), out).await?;
    assert_eq!(out.status.code(), Some(7), "the remote exit code: {}", text(&out.stderr));
    assert_eq!((out.stdout.as_slice(), text(&out.stderr)), (&b"through\0"[..], "err\n".into()));
    let wrong = home.verb(&["exec", "c", "--", "true"]).await?;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("its nodes are: a, b"), "{}", text(&wrong.stderr));
    Ok(())
}

async fn copies(home: &Home) -> Result<()> {
    let root = home.bench.root();
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).doing(Kind::Host, || path.display().to_string())
    };
    let mut bytes = Vec::with_capacity(SIZE);
    let mut random = std::fs::File::open("/dev/urandom").doing(Kind::Host, || "random".into())?;
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut random, SIZE as u64), &mut bytes)
        .doing(Kind::Host, || "random".into())?;
    write(&root.join("sent"), &bytes)?;
    home.ok(&["cp", "sent", "a:/tmp/there"]).await?;
    let sum = home.ok(&["exec", "a", "--", "sha256sum", "/tmp/there"]).await?;
    assert!(sum.starts_with(&sha256(&bytes)), "{sum}");
    home.ok(&["cp", "a:/tmp/there", "back"]).await?;
    let back = std::fs::read(root.join("back")).doing(Kind::Host, || "back".into())?;
    assert_eq!(sha256(&back), sha256(&bytes), "{} bytes came back", back.len());

    let folder = root.join("folder/deep");
    std::fs::create_dir_all(&folder).doing(Kind::Host, || "a folder".into())?;
    write(&folder.join("one"), b"1")?;
    write(&root.join("folder/two"), b"22")?;
    home.ok(&["cp", "folder", "b:/tmp/new"]).await?;
    assert_eq!(
        home.ok(&["exec", "b", "--", "cat", "/tmp/new/deep/one", "/tmp/new/two"]).await?,
        "122"
    );
    home.ok(&["cp", "b:/tmp/new", "returned"]).await?;
    let one = std::fs::read(root.join("returned/deep/one")).doing(Kind::Host, || "one".into())?;
    assert_eq!(one, b"1");

    // Of root, only with --sudo; and nothing half is left of what was refused.
    let refused = home.verb(&["cp", "sent", "a:/root/x"]).await?;
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("--sudo"), "{}", text(&refused.stderr));
    home.ok(&["cp", "--sudo", "sent", "a:/etc/from-outside"]).await?;
    let missing = home.verb(&["cp", "a:/nowhere", "nothing"]).await?;
    assert_eq!(missing.status.code(), Some(5), "{}", text(&missing.stderr));
    assert!(!root.join("nothing").exists());
    Ok(())
}

/// The SSH server of `a`, a real TCP service, by every way there is.
async fn ways_in(home: &Home) -> Result<()> {
    let mut forward = home.command(&["forward", "a:22"]);
    let mut child = forward.spawn().doing(Kind::Host, || "forward".into())?;
    let mut said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = async { said.next_line().await.doing(Kind::Host, || "forward".into()) };
    let line = home.bench.patience.within("a forward", VERB, &Death::never(), line).await?;
    let line = line.ok_or_else(|| Error::internal("the forward said nothing"))?;
    let at = line.split(' ').next().unwrap_or_default().to_owned();
    assert!(at.starts_with("127.0.0.1:"), "{line}");
    for _ in 0..3 {
        banner(home, &at).await?;
    }
    let status = home.status().await?;
    assert_eq!(status["forwards"][0]["connections"], 3, "{status}");
    signal(child.id().expect("it runs") as i32, Signal::INT);
    let end = async { child.wait().await.doing(Kind::Host, || "forward".into()) };
    home.bench.patience.within("its end", VERB, &Death::never(), end).await?;
    let gone = || async {
        match TcpStream::connect(&at).await {
            Ok(_) => Poll::NotYet("it still listens".into()),
            Err(_) => Poll::Ready(()),
        }
    };
    home.bench.patience.until("the port's end", VERB, LOOK, &Death::never(), gone).await?;

    let kept = home.ok(&["forward", "192.168.103.12:22", "--background"]).await?;
    banner(home, kept.split(' ').next().unwrap_or_default()).await?;

    home.ok(&["exec", "a", "--", "sudo", "httpd", "-p", "8080", "-h", "/etc"]).await?;
    home.ok(&["rc"]).await?;
    let rc = std::fs::read_to_string(home.bench.root().join("openrc"))
        .doing(Kind::Host, || "openrc".into())?;
    let proxy = rc.split("http_proxy='").nth(1).and_then(|r| r.split('\'').next());
    let proxy = ureq::Proxy::new(proxy.expect("the RC file sets it"));
    let proxy = proxy.doing(Kind::Internal, || "the proxy's URL".into())?;
    let fetched = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().proxy(Some(proxy)).build().into();
        agent.get("http://a:8080/hostname").call()?.body_mut().read_to_string()
    });
    let fetched = async { fetched.await.doing(Kind::Internal, || "ureq".into()) };
    let fetched = home.bench.patience.within("a page", VERB, &Death::never(), fetched).await?;
    assert_eq!(fetched.doing(Kind::Lab, || "through the proxy".into())?, "a\n");

    let on_path = std::env::var_os("PATH")
        .is_some_and(|p| std::env::split_paths(&p).any(|dir| dir.join("ssh").is_file()));
    if on_path {
        let out = home.verb(&["ssh", "b", "hostname"]).await?;
        // ssh hangs up its ProxyCommand when it is done, which is no interruption.
        assert_eq!((text(&out.stdout), text(&out.stderr)), ("b\n".into(), String::new()));
    } else {
        eprintln!("not run: `lab ssh`: no ssh on this host");
    }
    Ok(())
}

async fn banner(home: &Home, at: &str) -> Result<()> {
    let read = async {
        let doing = || format!("the SSH server through {at}");
        let mut stream = TcpStream::connect(at).await.doing(Kind::Lab, doing)?;
        let mut banner = [0; 8];
        stream.read_exact(&mut banner).await.doing(Kind::Lab, doing)?;
        Ok(banner)
    };
    let banner = home.bench.patience.within("a banner", VERB, &Death::never(), read).await?;
    assert_eq!(&banner, b"SSH-2.0-");
    Ok(())
}

async fn faults(home: &Home) -> Result<()> {
    home.ok(&["fault", "cut", "a/management"]).await?;
    let status = home.status().await?;
    assert_eq!(status["nodes"][0]["cut"][0], "management", "{status}");
    home.ok(&["fault", "heal", "management"]).await?;
    assert_eq!(home.ok(&["exec", "a", "--", "echo", "healed"]).await?, "healed\n");
    home.ok(&["fault", "freeze", "a"]).await?;
    assert_eq!(home.status().await?["nodes"][0]["state"], "frozen");
    home.ok(&["fault", "thaw", "a"]).await?;
    assert_eq!(home.ok(&["exec", "a", "--", "echo", "thawed"]).await?, "thawed\n");
    let wrong = home.verb(&["fault", "cut", "a/storage"]).await?;
    assert!(text(&wrong.stderr).contains("its networks are: "), "{}", text(&wrong.stderr));
    // Its disk is its memory: it would die of it.
    let full = home.verb(&["fault", "fill", "a"]).await?;
    assert!(text(&full.stderr).contains("in its memory"), "{}", text(&full.stderr));
    home.ok(&["fault", "free", "a"]).await?;
    home.ok(&["fault", "power-cut", "b"]).await?;
    let status = home.status().await?;
    let state = status["nodes"][1]["state"].as_str().unwrap_or_default();
    assert!(state.starts_with("dead"), "{status}");
    assert_eq!(status["nodes"][0]["state"], "up", "the other goes on: {status}");
    let last = home.verb(&["fault", "power-cut", "a"]).await?;
    assert!(text(&last.stderr).contains("the last machine that is on"), "{}", text(&last.stderr));
    home.ok(&["fault", "power-on", "b"]).await?;
    let status = home.status().await?;
    assert_eq!(status["nodes"][1]["state"], "up", "{status}");
    assert_eq!(home.ok(&["exec", "b", "--", "hostname"]).await?, "b\n", "on the same address");
    let twice = home.verb(&["fault", "power-on", "b"]).await?;
    assert!(text(&twice.stderr).contains("b is on"), "{}", text(&twice.stderr));
    // The lab is whole again: it can be saved.
    home.ok(&["checkpoint", "after"]).await?;
    Ok(())
}

fn spawn(mut command: Command) -> Result<(Child, i32)> {
    let child = command.spawn().doing(Kind::Host, || "starting stackproof".into())?;
    let pid = child.id().expect("it is not reaped") as i32;
    Ok((child, pid))
}

/// A process may have ended by itself meanwhile.
fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

async fn killed() -> Result<()> {
    let (home, mut dice) = (Home::new(&["a", "b"]).await?, Dice::new());
    // The first is killed when it is up: so long are the others' moments.
    let mut whole = None;
    for draw in 0..=DRAWS {
        let start = Instant::now();
        let (mut child, starter) = spawn(home.up())?;
        let ended = child.wait();
        let ended = async { ended.await.doing(Kind::Internal, || "reaping".into()) };
        let when = match whole {
            None => {
                home.bench.patience.within("a lab", UP, &Death::never(), ended).await?;
                whole = Some(start.elapsed());
                assert_eq!(processes_in(&home.store).len(), 2, "both machines run");
                kill(home.an_owner().await?);
                "when it was up".to_owned()
            }
            Some(whole) => {
                let moment = dice.moment(whole);
                // The draw, not a wait for anything.
                tokio::time::sleep(moment).await;
                let who = if draw % 2 == 0 {
                    // Drawn before there was one: then its first moment.
                    kill(home.an_owner().await?);
                    "owner"
                } else {
                    // Nobody waits for the lab any more: if it is not up by now, it goes.
                    kill(starter);
                    "starter"
                };
                home.bench.patience.within("its end", VERB, &Death::never(), ended).await?;
                home.given_up_or_up().await?;
                home.ours(&["own"]).into_iter().for_each(kill);
                format!("draw {draw}, {who} after {moment:?}")
            }
        };
        no_process_in(&home.store, &home.bench.patience).await?;
        home.no_owner().await?;
        // Any command sweeps. What was killed is told, or there was nothing yet to be told of.
        let listed = home.ok(&["ls"]).await?;
        assert!(listed.contains("was killed") || !listed.contains("home"), "{when}: {listed}");
        home.assert_nothing_runs(&when);
    }
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "the name works: {}", text(&out.stderr));
    assert_eq!(home.ok(&["exec", "b", "--", "hostname"]).await?, "b\n");
    home.ok(&["down"]).await?;
    home.assert_nothing_runs("at the end");
    Ok(())
}

async fn given_up() -> Result<()> {
    let (home, mut dice) = (Home::new(&["a", "b"]).await?, Dice::new());
    // The first at its first moment. Where machines boot sooner than the longest, it gets shorter.
    let mut longest = Duration::ZERO;
    for draw in 0..4 {
        let start = Instant::now();
        let (child, pid) = spawn(home.up())?;
        home.an_owner().await?;
        // The draw, not a wait for anything.
        tokio::time::sleep(dice.moment(longest)).await;
        signal(pid, Signal::INT);
        let out = async { child.wait_with_output().await.doing(Kind::Internal, || "up".into()) };
        let out = home.bench.patience.within("its end", VERB, &Death::never(), out).await?;
        if draw == 0 {
            longest = Duration::from_millis(3000);
        } else if out.status.success() {
            longest = longest.min(start.elapsed() / 2);
            home.ok(&["down"]).await?;
            continue;
        }
        assert_eq!(out.status.code(), Some(130), "draw {draw}: {}", text(&out.stderr));
        assert_eq!(home.owner(), None, "draw {draw}: gone when the command returns");
        home.assert_nothing_runs(&format!("draw {draw}"));
        assert!(!home.ok(&["ls"]).await?.contains("home"), "draw {draw}: nothing to tell");
    }
    Ok(())
}

async fn restore_given_up() -> Result<()> {
    let (home, mut dice) = (Home::new(&["a"]).await?, Dice::new());
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    home.ok(&["checkpoint", "ready"]).await?;
    home.ok(&["down"]).await?;
    let restore = || home.command(&["up", "--json", "--restore", "ready"]);
    let start = Instant::now();
    let out = home.ended(restore(), UP).await?;
    let whole = start.elapsed();
    assert!(out.status.success(), "{}", text(&out.stderr));
    home.ok(&["down"]).await?;
    for draw in 0..DRAWS {
        let moment = dice.moment(whole);
        let (child, pid) = spawn(restore())?;
        home.begun(pid).await?;
        // The draw, not a wait for anything.
        tokio::time::sleep(moment).await;
        signal(pid, Signal::INT);
        let out = async { child.wait_with_output().await.doing(Kind::Internal, || "up".into()) };
        let out = home.bench.patience.within("its end", VERB, &Death::never(), out).await?;
        let (when, said) = (format!("draw {draw}, {moment:?}"), text(&out.stderr));
        match out.status.code() {
            // It was up sooner than the first time.
            Some(0) => drop(home.ok(&["down"]).await?),
            code => {
                assert_eq!(code, Some(130), "{when}: {said}");
                assert!(said.contains("interrupted"), "{when}: {said}");
            }
        }
        assert_eq!(home.owner(), None, "{when}: gone when the command returns");
        home.assert_nothing_runs(&when);
        assert!(!home.ok(&["ls"]).await?.contains("home"), "{when}: nothing to tell");
    }
    // Neither was it harmed that they began from.
    let out = home.ended(restore(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    home.ok(&["down"]).await?;
    home.assert_nothing_runs("at the end");
    Ok(())
}

async fn machines_died() -> Result<()> {
    let home = Home::new(&["a"]).await?;
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    let [machine] = processes_in(&home.store)[..] else { panic!("one machine") };
    signal(machine, Signal::KILL);
    home.no_owner().await?;
    let told = home.ok(&["status"]).await?;
    assert!(told.contains("QEMU of a was killed by signal 9"), "{told}");
    let late = home.verb(&["--name", "home", "exec", "a", "--", "true"]).await?;
    assert_ne!(late.status.code(), Some(0), "{}", text(&late.stderr));
    home.assert_nothing_runs("after the death");
    let said = home.ok(&["down", "--name", "home"]).await?;
    assert!(said.contains("had ended"), "{said}");
    assert_eq!(entries(&home.runs().join("labs")), [] as [String; 0]);
    Ok(())
}

/// What only lives in the memory of `a`: neither a reboot nor its disk brings it back.
const NONCE: [&str; 6] = ["exec", "a", "--", "cat", "/nonce", "/proc/sys/kernel/random/boot_id"];

fn named<'a>(lab: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["--name", lab], args].concat()
}

async fn taken_back() -> Result<()> {
    let home = Home::new(&["a"]).await?;
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    let write = "cat /proc/sys/kernel/random/uuid >/nonce";
    home.ok(&["exec", "a", "--", "sudo", "sh", "-c", write]).await?;
    let nonce = home.ok(&NONCE).await?;

    // A connection of ours through the owner: the checkpoint must not know of it.
    let said = home.ok(&["forward", "a:22", "--background"]).await?;
    let at = said.split(' ').next().unwrap_or_default();
    let mut open = TcpStream::connect(at).await.doing(Kind::Lab, || said.clone())?;
    let mut greeting = [0; 8];
    let greet = async { open.read_exact(&mut greeting).await.doing(Kind::Lab, || said.clone()) };
    home.bench.patience.within("a banner", VERB, &Death::never(), greet).await?;
    let folder = home.ok(&["checkpoint", "ready"]).await?;
    let folder = PathBuf::from(folder.trim_end());
    assert_eq!(folder, home.store.join("checkpoints/ready"));
    // All that was said and then the end, in order or by a reset.
    let end = async { Ok(open.read_to_end(&mut Vec::new()).await.is_ok()) };
    home.bench.patience.within("its end", VERB, &Death::never(), end).await?;
    banner(&home, at).await?;
    let mode = |file: &str| {
        use std::os::unix::fs::PermissionsExt;
        folder.join(file).metadata().expect(file).permissions().mode() & 0o777
    };
    assert_eq!(["a/memory", "a/disk.0.qcow2", "a/seed.img"].map(mode), [0o600; 3]);
    let again = home.verb(&["checkpoint", "ready"]).await?;
    assert_eq!(again.status.code(), Some(2), "{}", text(&again.stderr));

    // A node that stands still is in no checkpoint, and is let alone.
    home.ok(&["fault", "freeze", "a"]).await?;
    let frozen = home.verb(&["checkpoint", "frozen"]).await?;
    assert!(text(&frozen.stderr).contains("a is frozen"), "{}", text(&frozen.stderr));
    assert_eq!(home.status().await?["nodes"][0]["state"], "frozen");
    home.ok(&["fault", "thaw", "a"]).await?;

    home.ok(&["exec", "a", "--", "sudo", "sh", "-c", "echo later >/nonce"]).await?;
    home.ok(&["restore", "ready"]).await?;
    assert_eq!(home.ok(&NONCE).await?, nonce, "as it was, and not booted");
    banner(&home, at).await?;

    // The same beside it, as a lab of its own.
    let mut up = home.command(&["up", "--json", "--restore", "ready"]);
    up.args(["--name", "second"]);
    let out = home.ended(up, UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(processes_in(&home.store).len(), 2);
    let listed = home.ok(&["ls"]).await?;
    assert!(listed.contains("home") && listed.contains("second"), "{listed}");
    let unnamed = home.verb(&NONCE).await?;
    assert!(text(&unnamed.stderr).contains("home, second"), "{}", text(&unnamed.stderr));
    assert_eq!(home.ok(&named("second", &NONCE)).await?, nonce);
    let write = ["exec", "a", "--", "sudo", "sh", "-c", "echo of the second >/nonce"];
    home.ok(&named("second", &write)).await?;
    assert_eq!(home.ok(&named("home", &NONCE)).await?, nonce, "each has its own memory");
    home.ok(&named("second", &["down"])).await?;

    // What does not fit costs nothing: the lab that runs is as it was.
    let manifest = folder.join("manifest.json");
    let whole = std::fs::read_to_string(&manifest).doing(Kind::Host, || "manifest".into())?;
    let put = |text: &str| std::fs::write(&manifest, text).doing(Kind::Host, || "manifest".into());
    put(&whole.replace("128MiB", "160MiB"))?;
    let other = home.verb(&["restore", "ready"]).await?;
    assert_eq!(other.status.code(), Some(2), "{}", text(&other.stderr));
    assert!(text(&other.stderr).contains("lab up --restore"), "{}", text(&other.stderr));
    put(&whole[..whole.len() / 2])?;
    let cut = home.verb(&["restore", "ready"]).await?;
    assert!(text(&cut.stderr).contains("damaged"), "{}", text(&cut.stderr));
    assert_eq!(home.ok(&NONCE).await?, nonce);
    home.ok(&["down"]).await?;
    home.assert_nothing_runs("at the end");
    Ok(())
}

async fn the_wire() -> Result<()> {
    let home = Home::new(&["a", "b"]).await?;
    let out = home.ended(home.up(), UP).await?;
    assert!(out.status.success(), "{}", text(&out.stderr));
    for (node, address) in [("a", "172.24.4.11/24"), ("b", "172.24.4.12/24")] {
        let script = format!("ip addr add {address} dev external && ip link set external up");
        home.ok(&["exec", node, "--", "sudo", "sh", "-c", &script]).await?;
    }
    // Over the network with the faults; the commands themselves come over the other.
    let ping = async |count: &str| -> Result<bool> {
        let args = ["exec", "a", "--", "ping", "-c", count, "-W", "2", "172.24.4.12"];
        Ok(home.verb(&args).await?.status.success())
    };
    let heard = async |why: &str| -> Result<()> {
        let look = || async {
            match ping("1").await {
                Ok(true) => Poll::Ready(()),
                Ok(false) => Poll::NotYet("no answer".into()),
                Err(e) => Poll::Failed(e),
            }
        };
        home.bench.patience.until(why, VERB, LOOK, &Death::never(), look).await
    };
    heard("a ping between the guests").await?;
    home.ok(&["fault", "partition", "external", "a", "b"]).await?;
    assert!(!ping("3").await?, "they are in different groups");
    home.ok(&["fault", "clear", "external"]).await?;
    heard("a ping after the partition").await?;
    home.ok(&["fault", "disturb", "a/external", "--loss", "100"]).await?;
    assert!(!ping("3").await?, "all that `a` says is lost");
    home.ok(&["fault", "clear", "external"]).await?;
    heard("a ping after the loss").await?;
    let none = home.verb(&["fault", "disturb", "external", "--bandwidth", "0"]).await?;
    assert_eq!(none.status.code(), Some(2), "{}", text(&none.stderr));

    let file = home.bench.root().join("wire.pcapng");
    let (child, pid) = spawn(home.command(&["capture", "external", "-o", "wire.pcapng"]))?;
    let begun = || async {
        match file.metadata() {
            Ok(meta) if meta.len() > 0 => Poll::Ready(()),
            _ => Poll::NotYet("no file".into()),
        }
    };
    home.bench.patience.until("a capture", VERB, LOOK, &Death::never(), begun).await?;
    assert!(ping("2").await?);
    signal(pid, Signal::INT);
    let out = async { child.wait_with_output().await.doing(Kind::Internal, || "capture".into()) };
    let out = home.bench.patience.within("its end", VERB, &Death::never(), out).await?;
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let blocks = blocks(&std::fs::read(&file).doing(Kind::Host, || "the capture".into())?);
    let (packets, statistics) = (6, 5);
    assert!(blocks.iter().filter(|kind| **kind == packets).count() >= 4, "{blocks:?}");
    assert_eq!(blocks.last(), Some(&statistics), "the end of it was not lost: {blocks:?}");
    home.ok(&["down"]).await?;
    home.assert_nothing_runs("at the end");
    Ok(())
}

/// The kinds of the blocks of a pcapng file, which must be whole.
fn blocks(bytes: &[u8]) -> Vec<u32> {
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"));
    let (mut at, mut kinds) = (0, Vec::new());
    while at < bytes.len() {
        kinds.push(word(at));
        let length = word(at + 4) as usize;
        assert_eq!(word(at + length - 4) as usize, length, "both lengths of the block at {at}");
        at += length;
    }
    kinds
}
