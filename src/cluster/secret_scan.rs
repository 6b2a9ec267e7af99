//! No secret stands in a log: every one is looked for, on the nodes and in what we wrote and showed.

use super::context::RunContext;
use super::node_checks::check;
use super::provision::{Cluster, Declared};
use crate::engine::inventory::Node;
use crate::error::{Context, Error, Kind, Result};
use crate::event::Event;
use crate::secret::Secret;
use crate::wait::{Death, Poll};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// To read all logs of one node, on the reference machine.
const READING: Duration = Duration::from_secs(30);
/// Until the reader of events has read what was sent.
const TOLD: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
/// Shorter lines would be found everywhere.
const SHORTEST: usize = 8;
/// What the redactor puts in the place of a secret.
const HIDDEN: &str = "[secret]";

/// All that a run has recorded and shown until now.
pub struct RunTranscript {
    pub record: String,
    pub shown: String,
}

impl Cluster {
    /// Looks for each secret in the journals and logs of all nodes, in our own folder of logs, and
    /// in all that was recorded and shown. A word that was logged and told on purpose must be found
    /// (on the nodes) and be hidden (by us), else nothing was looked at.
    /// `transcript` gives what that is at the moment.
    pub async fn leaks(
        &self,
        declared: &Declared,
        logs: &Path,
        transcript: impl Fn() -> RunTranscript,
    ) -> Result<()> {
        let run = &self.run;
        let canary = Secret::generate(12).doing(Kind::Host, || "no random bytes".into())?;
        run.redactor.add(&canary);
        let secrets = words(&run.redactor.all(), &declared.secrets, &canary)?;
        for node in &self.nodes {
            let start = Instant::now();
            let seen = on_node(node, run, &secrets, &canary).await?;
            // Told by its word: whether it is washed is looked at below.
            let seen = seen.map(|told| format!("{told} ({})", canary.reveal()));
            run.events.send(Event::Check(check(name(&node.name), start, seen.clone())));
            if let Err(found) = seen {
                return Err(Error::new(Kind::Proof, format!("`{}` failed", name(&node.name)))
                    .evidence([found]));
            }
        }
        let start = Instant::now();
        let controls: Vec<_> = self.nodes.iter().map(|node| name(&node.name)).collect();
        let seen = in_view(run, transcript, &controls, &secrets, &canary).await?;
        self.tell([check("no secret in what was recorded and shown".into(), start, seen)])?;
        let start = Instant::now();
        let seen = in_folder(logs, &secrets)?;
        self.tell([check("no secret in our own logs and consoles".into(), start, seen)])
    }
}

fn name(node: &str) -> String {
    format!("no secret in the logs of {node}")
}

/// All that the run keeps secret, line by line, as a log would hold it, each with its name. A secret
/// of the cloud that nobody would look for is a defect.
fn words(
    all: &[Secret],
    named: &[(String, Secret)],
    canary: &Secret,
) -> Result<Vec<(String, Secret)>> {
    let mut words: Vec<(String, Secret)> = Vec::new();
    for line in all.iter().flat_map(Secret::lines) {
        if line.reveal().len() < SHORTEST || line == *canary {
            continue;
        }
        if words.iter().all(|(_, known)| *known != line) {
            let name = named.iter().find(|(_, s)| s.lines().any(|l| l == line));
            let name = name.map_or("a key or token", |(name, _)| name);
            words.push((name.to_owned(), line));
        }
    }
    for (name, secret) in named {
        if !secret.lines().any(|line| words.iter().any(|(_, word)| *word == line)) {
            return Err(Error::internal(format!("the secret `{name}` would not be looked for")));
        }
    }
    Ok(words)
}

/// Looks in the record and in what the view was given. The checks `controls`, just told with the
/// canary, must be there, and the canary must not.
async fn in_view(
    run: &RunContext,
    transcript: impl Fn() -> RunTranscript,
    controls: &[String],
    secrets: &[(String, Secret)],
    canary: &Secret,
) -> Result<Result<String, String>> {
    let told = || async {
        let RunTranscript { record, shown } = transcript();
        match controls.iter().find(|name| !record.contains(*name) || !shown.contains(*name)) {
            Some(name) => Poll::NotYet(format!("`{name}` is not there yet")),
            None => Poll::Ready((record, shown)),
        }
    };
    let what = "the record to have what was told";
    let texts = run.patience().until(what, TOLD, AGAIN, &Death::never(), told).await?;
    Ok(judge_view([("the record", &texts.0), ("what was shown", &texts.1)], secrets, canary))
}

fn judge_view(
    texts: [(&str, &String); 2],
    secrets: &[(String, Secret)],
    canary: &Secret,
) -> Result<String, String> {
    let mut found = BTreeSet::new();
    for (place, text) in texts {
        let canary = ("the word told on purpose".to_owned(), canary.clone());
        for (name, _) in secrets.iter().chain([&canary]).filter(|(_, s)| text.contains(s.reveal()))
        {
            found.insert(format!("{name} in {place}"));
        }
        if !text.contains(HIDDEN) {
            found.insert(format!("the word told on purpose is not in {place}, not even hidden"));
        }
    }
    if !found.is_empty() {
        return Err(found.into_iter().collect::<Vec<_>>().join(", "));
    }
    let bytes = texts.iter().map(|(_, text)| text.len()).sum::<usize>();
    Ok(format!("none of {} in {bytes} bytes; a word told on purpose was hidden", secrets.len()))
}

async fn on_node(
    node: &Node,
    run: &RunContext,
    secrets: &[(String, Secret)],
    canary: &Secret,
) -> Result<Result<String, String>> {
    let read = async { node.shell.script(script(secrets, canary)).await };
    let what = format!("the logs of {} to be read", node.name);
    let out = run.patience().within(&what, READING, &node.death, read).await?;
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

pub(super) fn in_folder(
    folder: &Path,
    secrets: &[(String, Secret)],
) -> Result<Result<String, String>> {
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
    fn keys_are_looked_for_line_by_line_and_every_secret_of_the_cloud_is() {
        let canary = Secret::new("canary-word");
        let pem = "-----BEGIN KEY-----\nfirst-line-of-it\nsecond-line\n-----END KEY-----\n";
        let all = [Secret::new(pem), Secret::new("0123456789abcdef"), canary.clone()];
        let found = words(&all, &secrets(), &canary).unwrap();
        let texts: Vec<_> = found.iter().map(|(n, s)| (n.as_str(), s.reveal())).collect();
        assert_eq!(
            texts,
            [
                ("a key or token", "first-line-of-it"),
                ("a key or token", "second-line"),
                ("admin", "0123456789abcdef"),
            ]
        );
        let e = words(&all[..1], &secrets(), &canary).unwrap_err();
        assert_eq!(e.kind(), Kind::Internal);
        assert!(e.message().contains("`admin`"), "{e}");
    }

    #[test]
    fn what_was_shown_is_searched_and_the_control_must_have_been_hidden_in_it() {
        let canary = Secret::new("canary-word");
        let judged = |record: &str, shown: &str| {
            let texts = (record.to_owned(), shown.to_owned());
            judge_view([("record", &texts.0), ("shown", &texts.1)], &secrets(), &canary)
        };
        assert!(judged("a [secret]", "b [secret]").is_ok());
        let told = judged("a [secret]", "b [secret] 0123456789abcdef").unwrap_err();
        assert_eq!(told, "admin in shown");
        let told = judged("a canary-word [secret]", "[secret]").unwrap_err();
        assert!(told.contains("told on purpose in record"), "{told}");
        assert!(judged("a [secret]", "nothing").is_err(), "a search that saw nothing");
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
