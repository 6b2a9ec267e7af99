//! The program as a person meets it: help, exit codes, what is on standard output and what is not,
//! and what a signal leaves behind.

#[path = "../vmtests/dice.rs"]
mod dice;

use dice::{Dice, watches_signals};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// For the end of a process of this host that does little.
const ENDS: Duration = Duration::from_secs(60);
/// So many moments are drawn.
const DRAWS: usize = 8;

/// A home of its own: no test reads or fills the user's store.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary folder"))
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(&["env", "--default-signal=HUP,INT,TERM"], arguments)
    }
    /// Started by another program, whose place it takes.
    fn command_by(&self, starter: &[&str], arguments: &[&str]) -> Command {
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(env!("CARGO_BIN_EXE_stackproof"));
        command.args(arguments).current_dir(self.path());
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        for name in
            ["STACKPROOF_STORE", "STACKPROOF_DEBIAN_MIRROR", "SSL_CERT_FILE", "SSL_CERT_DIR"]
        {
            command.env_remove(name);
        }
        command.env("XDG_CACHE_HOME", self.path().join("cache"));
        command
    }
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }
    /// A source tree with one pinned image that `url` promises.
    fn root(&self, url: &str) -> String {
        self.root_with(url, &"0".repeat(64))
    }
    fn root_with(&self, url: &str, sha256: &str) -> String {
        self.add_manifest("slow", url, sha256)
    }
    /// The same with a name of its own, beside those that are there.
    fn add_manifest(&self, name: &str, url: &str, sha256: &str) -> String {
        let root = self.path().join("root");
        std::fs::create_dir_all(root.join("images")).unwrap();
        std::fs::create_dir_all(root.join("vmtests/labs")).unwrap();
        let manifest = format!(
            "name = \"{name}\"\ndescription = \"an image that never comes\"\nuser = \"joe\"\n\
             format = \"qcow2\"\n[pin]\nurl = \"{url}\"\nsha256 = \"{sha256}\"\n"
        );
        std::fs::write(root.join("images").join(format!("{name}.toml")), manifest).unwrap();
        root.to_string_lossy().into_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_goes_to_standard_output_and_lists_verbs_and_exit_codes() {
    let out = Home::new().run(&["--help"]);
    assert!(out.status.success());
    let help = text(&out.stdout);
    for wanted in ["e2e", "images", "host", "Exit codes:", "130  interrupted", "STACKPROOF_STORE"] {
        assert!(help.contains(wanted), "no {wanted} in:\n{help}");
    }
}

#[test]
fn a_wrong_option_exits_2_and_suggests_the_right_one() {
    let out = Home::new().run(&["e2e", "--instance-imag", "x"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--instance-image"), "{}", text(&out.stderr));
    assert!(out.stdout.is_empty());
}

#[test]
fn a_lab_that_is_not_there_exits_2_and_names_it_and_the_next_step() {
    let out = Home::new().run(&["e2e", "--lab", "no-such-lab"]);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("no-such-lab") && err.contains("next:"), "{err}");
}

#[test]
fn a_lab_with_an_unknown_key_exits_2_with_its_file_and_line_in_text_and_json() {
    let home = Home::new();
    std::fs::write(home.path().join("my.toml"), "name = \"x\"\nnodez = 1\n").unwrap();
    let out = home.run(&["e2e", "--lab", "my.toml", "--json", "out.json"]);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("my.toml:2"), "{err}");
    let json = std::fs::read(home.path().join("out.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["result"], "error");
    assert_eq!(json["error"]["kind"], "input");
    assert!(json["error"]["message"].as_str().unwrap().contains("my.toml:2"), "{json}");
    assert!(json["checks"].as_array().unwrap().is_empty());
}

#[test]
fn a_result_that_could_not_be_written_is_refused_before_the_run() {
    let home = Home::new();
    let out = home.run(&["e2e", "--json", "."]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("cannot be written"), "{}", text(&out.stderr));
}

#[test]
fn the_known_images_are_listed_outside_of_a_source_tree_too() {
    let out = Home::new().run(&["images", "list"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let list = text(&out.stdout);
    for wanted in ["NAME", "cirros-0.6.3", "cirros-0.6.2", "centos-7", "centos-stream-9"] {
        assert!(list.contains(wanted), "no {wanted} in:\n{list}");
    }
}

#[test]
fn a_text_page_is_no_image_and_inspect_says_so_with_exit_code_4() {
    let home = Home::new();
    std::fs::write(home.path().join("page.img"), "<!DOCTYPE html><html>302 Found</html>").unwrap();
    let out = home.run(&["images", "inspect", "page.img"]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("refused"), "{}", text(&out.stdout));
}

#[test]
fn inspect_prints_one_json_object_for_a_good_image() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
    let out = Home::new().run(&["images", "inspect", "--json", image]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["format"], "qcow2");
    assert_eq!(json["fine"], true);
}

#[test]
fn nothing_verified_is_not_called_verified() {
    let out = Home::new().run(&["images", "verify"]);
    assert!(text(&out.stdout).contains("nothing was verified"), "{}", text(&out.stdout));
    let out = Home::new().run(&["images", "verify", "cirros-0.6.3"]);
    assert_eq!(out.status.code(), Some(4));
    assert!(text(&out.stderr).contains("stackproof images fetch"), "{}", text(&out.stderr));
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let home = Home::new();
    let mut child = home
        .command(&["images", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn a_verb_for_a_lab_without_one_exits_2_and_names_the_next_step() {
    let home = Home::new();
    for verb in [&["status"][..], &["exec", "a", "--", "true"], &["down"], &["rc"], &["ssh", "a"]] {
        let out = home.run(&[&["lab"], verb].concat());
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{verb:?}: {err}");
        assert!(err.contains("no lab is running") && err.contains("stackproof lab up"), "{err}");
        assert!(out.stdout.is_empty());
    }
    let out = home.run(&["lab", "--name", "warm", "status"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("there is no lab warm"), "{}", text(&out.stderr));
    let out = home.run(&["lab", "--name", "../x", "status"]);
    assert!(text(&out.stderr).contains("no name for a lab"), "{}", text(&out.stderr));
}

#[test]
fn labs_that_are_not_there_are_an_empty_list_for_a_script_too() {
    let home = Home::new();
    let out = home.run(&["lab", "ls", "--json"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout).trim(), "[]");
}

#[test]
fn a_lab_that_cannot_start_says_why_before_anything_runs() {
    let home = Home::new();
    let out = home.run(&["lab", "up", "--lab", "no-such-lab"]);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("no-such-lab") && err.contains("next:"), "{err}");
    let out = home.run(&["lab", "up", "--restore", "nothing"]);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("no checkpoint nothing") && err.contains("lab checkpoint"), "{err}");
    let out = home.run(&["lab", "up", "--restore", "x", "--provision"]);
    assert_eq!(out.status.code(), Some(2), "a checkpoint is provisioned already");
    assert!(!home.path().join("cache/stackproof/runs").exists(), "nothing was made");
}

#[test]
fn the_help_of_a_lab_teaches_how_to_leave_and_which_exit_code_counts() {
    let home = Home::new();
    let help = |verb: &str| text(&home.run(&["lab", verb, "--help"]).stdout);
    assert!(help("console").contains("Ctrl-C leaves"));
    assert!(help("exec").contains("exit code are its own"));
    let all = text(&home.run(&["lab", "--help"]).stdout);
    assert!(all.contains("lab exec") && !all.contains("ProxyCommand"), "{all}");
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

fn send(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("it is not reaped");
}

/// What it said and how it ended, which it must do in time.
fn ended(child: Child) -> Output {
    let pid = child.id();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let out = told.recv_timeout(ENDS);
    out.unwrap_or_else(|_| panic!("process {pid} did not end within {ENDS:?}")).unwrap()
}

/// Waits for something that a process on its way must come to.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < ENDS, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends `signal` at a moment within `most` from where signals are watched for; it must have ended
/// by itself, or because of that and say so. Tells when it was and whether it had ended before.
fn interrupted(command: Command, signal: Signal, moment: Duration) -> (String, bool) {
    let child = start(command);
    until("signals to be watched for", || watches_signals(child.id().cast_signed()));
    // The draw, not a wait for anything.
    std::thread::sleep(moment);
    send(&child, signal);
    let out = ended(child);
    let (when, err) = (format!("{signal:?} after {moment:?}"), text(&out.stderr));
    assert!(!err.contains("panicked"), "{when}: {err}");
    if !out.status.success() {
        assert_eq!(out.status.code(), Some(130), "{when}: {err}");
        assert!(err.contains("interrupted"), "{when}: {err}");
    }
    (when, out.status.success())
}

fn signal_of(draw: usize) -> Signal {
    [Signal::INT, Signal::TERM, Signal::HUP][draw % 3]
}

/// The names of what is in a folder.
fn entries(folder: &Path) -> Vec<String> {
    let Ok(found) = folder.read_dir() else { return Vec::new() };
    found.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Answers one request for `file` piece by piece, from where it is asked for.
fn send_slowly(mut stream: TcpStream, file: &[u8]) -> std::io::Result<()> {
    let mut from = 0;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().expect("the first byte of a range");
        }
        if line.is_empty() {
            break;
        }
    }
    let (last, length) = (file.len() - 1, file.len() - from);
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{}", file.len()),
    };
    let head = format!("HTTP/1.1 {status}\r\nETag: \"x\"\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    for piece in file[from..].chunks(64 << 10) {
        stream.write_all(piece)?;
        // A slow line.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// At moments of the whole way from the connection over the bytes to their digest.
#[test]
fn a_signal_at_any_moment_of_a_download_keeps_the_store_right() {
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
    let mut image = std::fs::read(plain).unwrap();
    image.resize(2 << 20, 7);
    let sha256: String = Sha256::digest(&image).iter().map(|b| format!("{b:02x}")).collect();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", server.local_addr().unwrap());
    let served = image.clone();
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            // Whoever is interrupted hangs up.
            let _ = send_slowly(stream, &served);
        }
    });
    let fetch = |home: &Home| {
        let root = home.root_with(&url, &sha256);
        home.command(&["images", "fetch", "slow", "--root", &root])
    };
    let whole = |home: &Home| {
        let start = Instant::now();
        let out = ended(self::start(fetch(home)));
        assert!(out.status.success(), "{}", text(&out.stderr));
        let said = text(&out.stdout);
        let file = said.split_whitespace().last().expect("a path");
        assert!(std::fs::read(file).unwrap() == image, "{file} holds other bytes");
        start.elapsed()
    };
    let (most, mut dice) = (whole(&Home::new()), Dice::new());
    for draw in 0..DRAWS {
        let home = Home::new();
        let (when, _) = interrupted(fetch(&home), signal_of(draw), dice.moment(most));
        let store = home.path().join("cache/stackproof");
        assert_eq!(entries(&store.join("tmp")), [] as [String; 0], "{when}");
        // Under its digest is nothing but the whole of it, and what came is no hindrance.
        let root = home.root_with(&url, &sha256);
        let out = home.run(&["images", "verify", "--root", &root]);
        assert!(out.status.success(), "{when}: {}", text(&out.stderr));
        whole(&home);
    }
}

/// A tool is at work, which waits for a mirror that never answers.
#[test]
fn a_signal_at_any_moment_of_a_build_leaves_no_tool_and_no_folder() {
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join("apt-get").is_file())
    {
        eprintln!("not run: no apt-get on this host");
        return;
    }
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/debian", mirror.local_addr().unwrap());
    let (connected, connections) = mpsc::channel();
    std::thread::spawn(move || {
        // Held open as long as the receiver keeps them.
        for stream in mirror.incoming().flatten() {
            if connected.send(stream).is_err() {
                return;
            }
        }
    });
    let home = Home::new();
    let path = path_with_build_tools(&home);
    let build = || {
        let root = env!("CARGO_MANIFEST_DIR");
        let arguments = ["images", "build", "probe-guest", "--root", root, "--debian-mirror", &url];
        let mut command = home.command(&arguments);
        command.env("PATH", &path);
        command
    };
    let (start, mut held, mut dice) = (Instant::now(), Vec::new(), Dice::new());
    // The first is interrupted when its tool has asked: twice as long are the others' moments.
    let child = self::start(build());
    held.push(connections.recv_timeout(ENDS).expect("the mirror to be asked"));
    let most = start.elapsed() * 2;
    send(&child, Signal::INT);
    assert_eq!(ended(child).status.code(), Some(130));
    for draw in 0..DRAWS {
        let (when, built) = interrupted(build(), signal_of(draw), dice.moment(most));
        held.extend(connections.try_iter());
        assert!(!built, "{when}: from nothing");
        let store = home.path().join("cache/stackproof");
        for folder in ["tmp", "derived"] {
            assert_eq!(entries(&store.join(folder)), [] as [String; 0], "{when}: {folder}");
        }
        // Killed with it; the kernel needs a moment for those who are nobody's children.
        until("the tools to be gone", || processes_of(home.path()).is_empty());
    }
}

/// Processes that work in a folder, or were told of it.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let told = |process: &std::fs::DirEntry| {
        ["cmdline", "environ"].iter().any(|file| {
            let text = std::fs::read(process.path().join(file)).unwrap_or_default();
            text.windows(folder.len()).any(|part| part == folder)
        })
    };
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter(told).map(|p| p.file_name().to_string_lossy().into_owned()).collect()
}

/// Both signals, while a server holds a download for ever.
#[test]
fn a_signal_in_the_middle_of_a_download_exits_130_and_says_interrupted() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let home = Home::new();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let root = home.root(&format!("http://{}/x", server.local_addr().unwrap()));
        let child = home
            .command(&["images", "fetch", "slow", "--root", &root])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Connected: the download is on its way. Nothing is ever answered.
        let connection = server.accept().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let out = child.wait_with_output().unwrap();
        drop(connection);
        let err = text(&out.stderr);
        assert_eq!(out.status.code(), Some(130), "{err}");
        assert!(err.contains("interrupted"), "{err}");
        assert!(!err.contains("panicked"), "{err}");
    }
}

#[test]
fn a_cache_without_layers_is_told_in_words_and_as_json() {
    let home = Home::new();
    let out = home.run(&["cache", "ls"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("there are no layers"), "{}", text(&out.stdout));
    let out = home.run(&["cache", "ls", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((json["bytes"].as_u64(), json["layers"].as_array().unwrap().len()), (Some(0), 0));
    let out = home.run(&["cache", "gc", "--all"]);
    assert_eq!(text(&out.stdout), "0 B freed, 0 B left in 0 layers\n");
    let out = home.run(&["cache", "gc", "--max", "lots"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("no size such as 20GiB"), "{}", text(&out.stderr));
}

#[test]
fn results_are_written_to_devices_fifos_and_links() {
    let home = Home::new();
    let at = |name: &str| home.path().join(name);
    let e2e = |to: &str| home.command(&["e2e", "--lab", "no-such-lab", "--json", to]);
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();

    std::os::unix::fs::symlink("kept.json", at("link.json")).unwrap();
    std::fs::write(at("kept.json"), "{\"old\":1}").unwrap();
    assert_eq!(e2e("link.json").output().unwrap().status.code(), Some(2));
    assert!(at("link.json").is_symlink());
    assert_eq!(parse(&std::fs::read(at("kept.json")).unwrap())["result"], "error");

    std::os::unix::fs::symlink("/dev/null", at("null")).unwrap();
    assert_eq!(e2e("null").output().unwrap().status.code(), Some(2));
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());

    // One JSON object and nothing else, for `| jq`.
    let out = e2e("/dev/stdout").output().unwrap();
    assert_eq!(parse(&out.stdout)["result"], "error");

    let pipe = at("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || std::fs::read(pipe).unwrap())
    };
    assert_eq!(e2e("pipe").output().unwrap().status.code(), Some(2));
    assert_eq!(parse(&reader.join().unwrap())["result"], "error");
    assert!(!std::fs::metadata(&pipe).unwrap().is_file());
}

#[test]
fn a_full_standard_output_is_an_error() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
    let home = Home::new();
    for arguments in [
        &["images", "inspect", "--json", image][..],
        &["images", "list"],
        &["lab", "ls", "--json"],
        &["cache", "ls"],
        &["--help"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let out = home.command(arguments).stdout(full).output().unwrap();
        assert_eq!(out.status.code(), Some(3), "{arguments:?}");
        assert!(text(&out.stderr).contains("standard output"), "{}", text(&out.stderr));
    }
}

#[test]
fn a_signal_ignored_at_the_start_stays_ignored() {
    for (signal, name) in [(Signal::HUP, "HUP"), (Signal::INT, "INT")] {
        let home = Home::new();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let root = home.root(&format!("http://{}/x", server.local_addr().unwrap()));
        let ignore = format!("--ignore-signal={name}");
        let starter = ["env", "--default-signal=HUP,INT,TERM", &ignore];
        let mut command = home.command_by(&starter, &["images", "fetch", "slow", "--root", &root]);
        command.stdin(Stdio::null());
        let mut child = start(command);
        let connection = server.accept().unwrap();
        send(&child, signal);
        send(&child, signal);
        // Still there: it waits for an answer until it is asked to stop in another way.
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{name} ended it");
        send(&child, Signal::TERM);
        assert_eq!(ended(child).status.code(), Some(130));
        drop(connection);
    }
}

#[test]
fn verbs_that_only_look_need_no_home() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
    for (variable, value) in
        [("XDG_CACHE_HOME", "/proc"), ("HOME", "/nonexistent"), ("TMPDIR", "/nonexistent")]
    {
        for arguments in [
            &["images", "list"][..],
            &["images", "inspect", image],
            &["images", "verify"],
            &["cache", "ls"],
            &["lab", "ls"],
        ] {
            let home = Home::new();
            let mut command = home.command(arguments);
            if variable != "TMPDIR" {
                command.env_remove("XDG_CACHE_HOME");
            }
            let out = command.env(variable, value).output().unwrap();
            assert!(out.status.success(), "{variable} {arguments:?}: {}", text(&out.stderr));
            assert_eq!(entries(home.path()), [] as [String; 0], "{variable} {arguments:?}");
        }
    }
    let home = Home::new();
    let root = home.root("http://127.0.0.1:9/x");
    let mut command = home.command(&["images", "fetch", "slow", "--root", &root]);
    let out = command.env("XDG_CACHE_HOME", "/proc").output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("--store"), "{}", text(&out.stderr));
}

#[test]
fn what_editors_and_systems_drop_is_no_manifest() {
    let home = Home::new();
    let root = home.root("http://127.0.0.1:9/x");
    let images = Path::new(&root).join("images");
    std::os::unix::fs::symlink("me@host.1:2", images.join(".#slow.toml")).unwrap();
    std::fs::write(images.join("._a.toml"), b"Mac OS X\0").unwrap();
    std::fs::write(images.join("slow.toml~"), "old").unwrap();
    std::fs::create_dir(images.join("old.toml")).unwrap();
    std::fs::write(Path::new(&root).join("vmtests/labs/.#x.toml"), "").unwrap();
    let out = home.run(&["images", "list", "--root", &root]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("slow"), "{}", text(&out.stdout));
}

#[test]
fn one_failed_download_keeps_no_other_from_its_turn() {
    let plain = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/images/qcow2/plain.qcow2");
    let image = std::fs::read(plain).unwrap();
    let sha256: String = Sha256::digest(&image).iter().map(|b| format!("{b:02x}")).collect();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            let _ = send_slowly(stream, &image);
        }
    });
    for names in [["good", "wrong"], ["wrong", "good"]] {
        let home = Home::new();
        home.add_manifest("good", &url, &sha256);
        let root = home.add_manifest("wrong", &url, &"0".repeat(64));
        let out = home.run(&["images", "fetch", names[0], names[1], "--root", &root]);
        let (said, err) = (text(&out.stdout), text(&out.stderr));
        assert_eq!(out.status.code(), Some(4), "{err}");
        assert!(said.starts_with("good  /") && said.lines().count() == 1, "{said}");
        assert!(err.contains("fetch wrong: FAILED") && !err.contains("fetch wrong: done"), "{err}");
    }
}

#[test]
fn a_wrong_proxy_is_named_before_anything_is_fetched() {
    let home = Home::new();
    let root = home.root("http://127.0.0.1:9/x");
    let mut command = home.command(&["images", "fetch", "slow", "--root", &root]);
    let out = command.env("http_proxy", "http://[bad").output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("`http_proxy`"), "{}", text(&out.stderr));
    // Verbs that fetch nothing do not care.
    let out = home.command(&["lab", "ls"]).env("http_proxy", "http://[bad").output().unwrap();
    assert!(out.status.success());
}

#[test]
fn a_lab_file_in_another_encoding_exits_2_with_its_line() {
    let home = Home::new();
    std::fs::write(home.path().join("l.toml"), b"# \xc7\xd1\xb1\xdb\nname = \"x\"\n").unwrap();
    let out = home.run(&["lab", "up", "--lab", "l.toml"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    let err = text(&out.stderr);
    assert!(err.contains("l.toml:1: not UTF-8") && err.contains("iconv"), "{err}");
}

#[test]
fn a_store_is_private_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let root = home.root("http://127.0.0.1:9/x");
    let arguments = ["images", "fetch", "slow", "--store", "u", "--root", &root];
    let starter = ["sh", "-c", "umask 000; exec \"$@\"", "sh"];
    let out = home.command_by(&starter, &arguments).output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    let mode = home.path().join("u").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// A path on which pretended tools of an image build stand beside the host's: no test may install any.
/// What verifies and downloads (apt-get, dpkg-deb) is pretended only where the host has none.
fn path_with_build_tools(home: &Home) -> String {
    let (before, after) = (home.path().join("before"), home.path().join("after"));
    pretend_tools(
        &before,
        &[
            ("qemu-system-x86_64", "echo QEMU emulator version 10.0.0"),
            ("qemu-img", "echo qemu-img version 10.0.0"),
            ("mmdebstrap", "echo mmdebstrap 1.5.7"),
            ("mke2fs", "echo mke2fs 1.47.2"),
            ("unshare", "echo unshare 2.41"),
            ("newuidmap", "exit 0"),
        ],
    );
    pretend_tools(
        &after,
        &[("apt-get", "echo E: no apt here; exit 100"), ("dpkg-deb", "echo dpkg-deb 1.22.0")],
    );
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}:{}", before.display(), after.display())
}

fn pretend_tools(folder: &Path, tools: &[(&str, &str)]) {
    std::fs::create_dir(folder).unwrap();
    for (name, script) in tools {
        let file = folder.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_mirror_that_does_not_answer_is_named() {
    let home = Home::new();
    let path = path_with_build_tools(&home);
    let (root, mirror) = (env!("CARGO_MANIFEST_DIR"), "http://127.0.0.1:9/debian");
    let build = ["images", "build", "probe-guest", "--root", root, "--debian-mirror", mirror];
    let out = home.command(&build).env("PATH", path).output().expect("the program starts");
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(4), "{err}");
    assert!(err.contains("the mirror http://127.0.0.1:9/debian"), "{err}");
    assert!(err.contains("--debian-mirror") && !err.contains("done"), "{err}");
}
