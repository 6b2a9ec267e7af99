//! No secret stands in a log: every one is looked for, on the nodes and in what we wrote.

use super::nodes::check;
use super::{Cluster, Declared};
use crate::cli::session::Work;
use crate::engine::inventory::Node;
use crate::error::{Context, Error, Kind, Result};
use crate::secret::Secret;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// To read all logs of one node, on the reference machine.
const READING: Duration = Duration::from_secs(30);

impl Cluster {
    /// Looks for each secret in the journals and logs of all nodes, and in our own folder of logs.
    /// A word that was logged on purpose must be found beside them, else nothing was looked at.
    pub async fn leaks(&self, work: &Work, declared: &Declared, logs: &Path) -> Result<()> {
        let canary = Secret::generate(12).doing(Kind::Host, || "no random bytes".into())?;
        let secrets = lines(work.redactor.all(), &declared.secrets);
        for node in &self.nodes {
            let start = Instant::now();
            let seen = on_node(node, work, &secrets, &canary).await?;
            let name = format!("no secret in the logs of {}", node.name);
            self.tell(work, [check(name, start, seen)])?;
        }
        let start = Instant::now();
        let seen = in_folder(logs, &secrets)?;
        self.tell(work, [check("no secret in our own logs and consoles".into(), start, seen)])
    }
}

/// All that the run keeps secret, each under its name: the cloud's own, and the private keys line by
/// line, as a log would hold them.
fn lines(all: Vec<Secret>, named: &[(String, Secret)]) -> Vec<(String, Secret)> {
    all.into_iter()
        .filter(|secret| !secret.reveal().contains('\n'))
        .map(|secret| match named.iter().find(|(_, s)| *s == secret) {
            Some((name, _)) => (name.clone(), secret),
            None => ("a key or token".to_owned(), secret),
        })
        .collect()
}

async fn on_node(
    node: &Node,
    work: &Work,
    secrets: &[(String, Secret)],
    canary: &Secret,
) -> Result<Result<String, String>> {
    let run = async { node.shell.script(script(secrets, canary)).await };
    let what = format!("the logs of {} to be read", node.name);
    let out = work.patience().within(&what, READING, &node.death, run).await?;
    if out.status != 0 {
        return Err(Error::provision(format!("the logs of {} could not be read", node.name))
            .evidence(out.stderr_tail(5)));
    }
    Ok(judge(&String::from_utf8_lossy(&out.stdout), secrets, canary))
}

/// Prints `FILE:WORD` for each of the words found. They travel over standard input and lie for a
/// moment in a private file in memory.
fn script(secrets: &[(String, Secret)], canary: &Secret) -> String {
    let words: String = secrets.iter().map(|(_, s)| format!("{}\n", s.reveal())).collect();
    let canary = canary.reveal();
    format!(
        "{{ set -eu; umask 077; d=$(mktemp -d /run/stackproof.XXXXXX)\n\
         trap 'rm -rf \"$d\" /var/log/stackproof-canary' EXIT\n\
         cat >\"$d/words\" <<'STACKPROOF_WORDS'\n{words}{canary}\nSTACKPROOF_WORDS\n\
         echo {canary} >/var/log/stackproof-canary\n\
         logger -t stackproof {canary}; journalctl --sync\n\
         journalctl -q --no-pager -o cat | grep -aoFf \"$d/words\" | sort -u | sed 's/^/journal:/'\n\
         grep -raoFf \"$d/words\" --exclude-dir=journal /var/log | sort -u\n}}\n"
    )
}

fn judge(printed: &str, secrets: &[(String, Secret)], canary: &Secret) -> Result<String, String> {
    let mut found = BTreeSet::new();
    let mut canaries = BTreeSet::new();
    for (file, word) in printed.lines().filter_map(|l| l.rsplit_once(':')) {
        if word == canary.reveal() {
            canaries.insert(file);
        } else if let Some((name, _)) = secrets.iter().find(|(_, s)| s.reveal() == word) {
            found.insert(format!("{name} in {file}"));
        }
    }
    if !found.is_empty() {
        return Err(found.into_iter().collect::<Vec<_>>().join(", "));
    }
    if canaries.len() < 2 {
        return Err(format!("the word logged on purpose was found in {canaries:?} only"));
    }
    Ok(format!("none of {}; a word logged on purpose was found", secrets.len()))
}

fn in_folder(folder: &Path, secrets: &[(String, Secret)]) -> Result<Result<String, String>> {
    let doing = || format!("{} cannot be read", folder.display());
    let (mut files, mut bytes, mut found) = (0, 0, BTreeSet::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).doing(Kind::Host, doing)? {
            let path = entry.doing(Kind::Host, doing)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read(&path).doing(Kind::Host, doing)?;
            let text = String::from_utf8_lossy(&text);
            (files, bytes) = (files + 1, bytes + text.len());
            for (name, _) in secrets.iter().filter(|(_, s)| text.contains(s.reveal())) {
                found.insert(format!("{name} in {}", path.display()));
            }
        }
    }
    Ok(match (found.is_empty(), bytes) {
        (true, 0) => Err(format!("nothing is in {}", folder.display())),
        (true, _) => Ok(format!("none of {} in {files} files, {bytes} bytes", secrets.len())),
        (false, _) => Err(found.into_iter().collect::<Vec<_>>().join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Vec<(String, Secret)> {
        vec![("admin".into(), Secret::new("0123456789abcdef"))]
    }

    #[test]
    fn a_leak_is_told_by_name_and_file_and_never_by_its_word() {
        let canary = Secret::new("canary-word");
        let both = "journal:canary-word\n/var/log/stackproof-canary:canary-word\n";
        assert!(judge(both, &secrets(), &canary).is_ok());
        let leak = format!("{both}/var/log/nova/nova.log:0123456789abcdef\n");
        let told = judge(&leak, &secrets(), &canary).unwrap_err();
        assert_eq!(told, "admin in /var/log/nova/nova.log");
    }

    #[test]
    fn a_search_that_does_not_find_the_canary_in_both_places_proves_nothing() {
        let canary = Secret::new("canary-word");
        assert!(judge("", &secrets(), &canary).is_err());
        assert!(judge("journal:canary-word\n", &secrets(), &canary).is_err());
    }

    #[test]
    fn the_search_itself_finds_what_was_logged() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("n")).unwrap();
        std::fs::write(dir.path().join("n/console.log"), "boot\n").unwrap();
        assert!(in_folder(dir.path(), &secrets()).unwrap().is_ok());
        std::fs::write(dir.path().join("n/x.log"), "pw=0123456789abcdef\n").unwrap();
        let told = in_folder(dir.path(), &secrets()).unwrap().unwrap_err();
        assert!(told.starts_with("admin in ") && told.ends_with("n/x.log"), "{told}");
        let empty = tempfile::tempdir().unwrap();
        assert!(in_folder(empty.path(), &secrets()).unwrap().is_err());
    }
}
