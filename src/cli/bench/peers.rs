//! virtme-ng and autopkgtest-virt-qemu, each from its start to the answer of a first command.

use super::guests::Peers;
use crate::engine::quote;
use crate::error::{Context, Error, Kind, Result, last_lines};
use crate::host::tool::Tool;
use crate::lab::accel::Accel;
use crate::lab::hypervisor::Hypervisor;
use crate::lab::process::Process;
use crate::wait::{Death, Patience};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;

/// From the start of a peer to its answer, and from there to its end, on the reference machine.
const ANSWERS: Duration = Duration::from_secs(60);
const ENDS: Duration = Duration::from_secs(30);

/// MiB of each guest, ours too.
pub const MEMORY: u32 = 256;

/// What a guest prints; not what is written in the command, lest an echo be taken for it.
pub const COMMAND: &str = "echo first-command-$((40+2))";
pub const ANSWER: &str = "first-command-42";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    VirtmeNg,
    Autopkgtest,
}

impl Peer {
    pub const ALL: [Peer; 2] = [Peer::VirtmeNg, Peer::Autopkgtest];

    pub fn name(self) -> &'static str {
        match self {
            Peer::VirtmeNg => "virtme-ng",
            Peer::Autopkgtest => "autopkgtest-virt-qemu",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Peer::VirtmeNg => "vng",
            Peer::Autopkgtest => "autopkgtest-virt-qemu",
        }
    }

    pub fn install(self) -> &'static str {
        match self {
            Peer::VirtmeNg => "it is not installed: `pip install virtme-ng`",
            Peer::Autopkgtest => "it is not installed: `apt-get install autopkgtest`",
        }
    }

    pub fn is_installed(self) -> bool {
        find(self.program()).is_some()
    }
}

/// What a race needs.
pub struct Race<'a> {
    pub hypervisor: &'a Hypervisor,
    pub accel: Accel,
    pub guests: &'a Peers,
    /// The kernel's command line for a guest that brings none.
    pub append: &'a str,
    pub patience: &'a Patience,
}

impl Race<'_> {
    /// Seconds to the answer.
    pub async fn run(&self, peer: Peer) -> Result<f64> {
        let dir = tempfile::tempdir().doing(Kind::Host, || "a temporary folder".into())?;
        let run = match peer {
            Peer::VirtmeNg => self.virtme_ng(dir.path()).await,
            Peer::Autopkgtest => self.autopkgtest(dir.path()).await,
        };
        run.map_err(|e| e.while_doing(format!("racing {}", peer.name())))
    }

    async fn virtme_ng(&self, dir: &Path) -> Result<f64> {
        // It starts this through a shell: killed in its place, QEMU would live on.
        if let Some(real) = find("virtme-run") {
            script(&dir.join("virtme-run"), &bound(&real, &[], None))?;
        }
        script(&dir.join("qemu"), &bound(&self.hypervisor.qemu, &[], None))?;
        let mut command = Command::new(Peer::VirtmeNg.program());
        command.arg("--run").arg(self.guests.kernel()).arg("--root").arg(&self.guests.root);
        command.arg("--busybox").arg(self.guests.root.join("bin/busybox"));
        command.arg("--qemu").arg(dir.join("qemu"));
        command.args(["--memory", &format!("{MEMORY}M"), "--cpus", "1", "--exec", COMMAND]);
        if self.accel == Accel::Tcg {
            command.arg("--disable-kvm");
        }
        command.stderr(errors(dir)?);
        let start = Instant::now();
        let mut talk = Talk::start(command, dir).await?;
        talk.hear(self.patience, "virtme-ng's first command", |l| l.contains(ANSWER)).await?;
        let seconds = start.elapsed().as_secs_f64();
        talk.end(self.patience).await?;
        Ok(seconds)
    }

    /// Speaks as autopkgtest does (README.virtualisation-server).
    async fn autopkgtest(&self, dir: &Path) -> Result<f64> {
        let name = Peer::Autopkgtest.name();
        let mut more = Vec::new();
        let refused = match self.accel {
            Accel::Kvm => None,
            Accel::Tcg => {
                more.extend(["-accel", "tcg,thread=multi"].map(str::to_owned));
                // It wants KVM wherever there is a /dev/kvm.
                Some("-enable-kvm")
            }
        };
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| Error::input("a path is no UTF-8"))
        };
        more.extend(["-kernel".into(), text(&self.guests.kernel())?]);
        more.extend(["-initrd".into(), text(&self.guests.shell)?]);
        more.extend(["-append".into(), self.append.to_owned()]);
        script(&dir.join("qemu"), &bound(&self.hypervisor.qemu, &more, refused))?;
        let disk = dir.join("disk.qcow2");
        let create = Tool::new(&self.hypervisor.img).args(["create", "-q", "-f", "qcow2"]);
        create.arg(&disk).arg("64M").run(|_| {}).await?;

        let mut command = Command::new(Peer::Autopkgtest.program());
        command.arg("--qemu-command").arg(dir.join("qemu"));
        command.arg(format!("--ram-size={MEMORY}"));
        let reboot = self.patience.speed.scale(ANSWERS).as_secs();
        command.arg(format!("--timeout-reboot={reboot}"));
        if self.accel == Accel::Tcg {
            // The one that virtme-ng takes; what it would take itself needs KVM.
            command.arg("--qemu-options=-cpu max");
        }
        command.arg(&disk);
        command.stderr(errors(dir)?);

        let start = Instant::now();
        let mut talk = Talk::start(command, dir).await?;
        talk.hear(self.patience, name, |l| l == "ok").await?;
        talk.tell("open")?;
        talk.hear(self.patience, name, |l| l.starts_with("ok ")).await?;
        talk.tell("print-execute-command")?;
        let said = talk.hear(self.patience, name, |l| l.starts_with("ok ")).await?;
        let words = execute_command(&said);
        let (program, arguments) =
            words.split_first().ok_or_else(|| Error::host(format!("{name} runs no commands")))?;
        let mut seen = None;
        let first = Tool::new(program).args(arguments).args(["sh", "-c", COMMAND]);
        let first = first.run(|line| {
            if line.contains(ANSWER) {
                seen = Some(start.elapsed().as_secs_f64());
            }
        });
        let what = format!("{name}'s first command");
        self.patience.within(&what, ANSWERS, &Death::never(), first).await?;
        talk.tell("close")?;
        talk.tell("quit")?;
        talk.end(self.patience).await?;
        seen.ok_or_else(|| Error::host(format!("{what} gave no answer")))
    }
}

/// The words of `ok word,word`, percent-encoded.
fn execute_command(said: &str) -> Vec<String> {
    let words = said.strip_prefix("ok ").unwrap_or_default().split(',');
    words.filter(|w| !w.is_empty()).map(decoded).collect()
}

fn decoded(word: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A script that becomes `program` with `more` arguments, without `refused`, and dies with its
/// parent: what a peer starts is not ours to kill.
pub fn bound(program: &Path, more: &[String], refused: Option<&str>) -> String {
    let mut text = String::from("#!/bin/sh\n");
    if let Some(refused) = refused {
        let refused = quote::word(refused);
        text.push_str(&format!(
            "for word; do shift; [ \"$word\" = {refused} ] || set -- \"$@\" \"$word\"; done\n"
        ));
    }
    let program = quote::word(&program.to_string_lossy());
    let more = quote::words(more);
    text.push_str(&format!("exec setpriv --pdeathsig KILL -- {program} \"$@\" {more}\n"));
    text
}

/// Where a peer may complain; see [`Talk::hear`].
fn errors(dir: &Path) -> Result<File> {
    File::create(dir.join("errors")).doing(Kind::Host, || "no file for what a peer says".into())
}

pub fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .doing(Kind::Host, || "a script for a peer cannot be written".into())
}

/// Where a program is. Administration tools are not in an ordinary user's path.
pub fn find(program: &str) -> Option<PathBuf> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A peer that is spoken with over its standard input and output. Dropped, it is killed.
struct Talk {
    process: Process,
    tell: PipeWriter,
    said: Lines<BufReader<pipe::Receiver>>,
    /// Where its errors may be.
    dir: PathBuf,
}

impl Talk {
    /// All that it writes for itself goes to `dir`, which is also the first place for programs.
    async fn start(mut command: Command, dir: &Path) -> Result<Talk> {
        let cannot = || "no pipes for a peer".to_owned();
        let (stdin, tell) = io::pipe().doing(Kind::Host, cannot)?;
        let (said, stdout) = io::pipe().doing(Kind::Host, cannot)?;
        let mut path = dir.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        path.push(":/usr/sbin:/sbin");
        command.env("PATH", path).env("HOME", dir).env("TMPDIR", dir).env("LC_ALL", "C.UTF-8");
        command.env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME");
        command.stdin(stdin).stdout(stdout).current_dir(dir);
        let process = Process::spawn(command).await?;
        let said = pipe::Receiver::from_owned_fd(said.into()).doing(Kind::Host, cannot)?;
        let said = BufReader::new(said).lines();
        Ok(Talk { process, tell, said, dir: dir.to_owned() })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let told = self.tell.write_all(format!("{line}\n").as_bytes());
        told.doing(Kind::Host, || format!("it does not hear `{line}`"))
    }

    /// Waits for a line.
    async fn hear(
        &mut self,
        patience: &Patience,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let dir = self.dir.clone();
        let heard = async {
            let mut last = VecDeque::new();
            while let Some(line) =
                self.said.next_line().await.doing(Kind::Host, || format!("hearing {what}"))?
            {
                if wanted(line.trim_end()) {
                    return Ok(line);
                }
                last.push_back(line);
                if last.len() > 10 {
                    last.pop_front();
                }
            }
            Err(Error::host("it ended instead").evidence(last))
        };
        let out = patience.within(what, ANSWERS, &Death::never(), heard).await;
        out.map_err(|e| {
            let errors = fs::read(dir.join("errors")).unwrap_or_default();
            e.evidence(last_lines(&String::from_utf8_lossy(&errors), 5))
        })
    }

    /// Waits for its end: it must not run beside the next one.
    async fn end(self, patience: &Patience) -> Result<()> {
        let Talk { process, tell, said, .. } = self;
        drop(tell);
        let ended = async { Ok(process.exit().await) };
        patience.within("the end of a peer", ENDS, &Death::never(), ended).await?;
        drop(said);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Events;
    use crate::wait::Speed;

    #[test]
    fn the_command_of_autopkgtest_is_decoded_word_by_word() {
        let words = execute_command("ok /tmp/a%20b/runcmd,100%25,%2C");
        assert_eq!(words, ["/tmp/a b/runcmd", "100%", ","]);
        assert!(execute_command("ok ").is_empty());
        assert_eq!(decoded("50%"), "50%");
    }

    #[test]
    fn a_script_refuses_one_word_and_keeps_the_others_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (show, file) = (dir.path().join("show"), dir.path().join("script"));
        script(&show, "#!/bin/sh\nfor word; do echo \"<$word>\"; done\n").unwrap();
        let more = ["-append".to_owned(), "a 'b' c".to_owned()];
        script(&file, &bound(&show, &more, Some("-enable-kvm"))).unwrap();
        let out = Command::new(&file).args(["-m", "-enable-kvm", "two words"]).output().unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        assert_eq!(said, "<-m>\n<two words>\n<-append>\n<a 'b' c>\n");
    }

    #[tokio::test]
    async fn a_peer_that_ends_instead_of_answering_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >errors"]);
        let mut talk = Talk::start(command, dir.path()).await.unwrap();
        let patience = Patience::new(Speed::new(10.0), Events::silent());
        let error = talk.hear(&patience, "an answer", |l| l == "three").await.unwrap_err();
        let evidence = error.evidence_lines().to_vec();
        assert!(evidence.contains(&"one".into()) && evidence.contains(&"two".into()), "{error}");
        talk.end(&patience).await.unwrap();
    }
}
