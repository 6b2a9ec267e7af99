//! What is read on the nodes after a failure, and where it is kept.

use super::provision::Cluster;
use crate::diagnose::{Role, Text, causes, collect_plan};
use crate::engine::inventory::Node;
use crate::error::{Context, Kind, Result};
use crate::lab::spec::LabSpec;
use crate::secret::Redactor;
use crate::wait::Patience;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;

/// For everything of one node, on the reference machine.
const PER_NODE: Duration = Duration::from_secs(90);
/// For one command of it.
const PER_COMMAND: Duration = Duration::from_secs(10);
/// So many likely causes are told with an error.
const CAUSES: usize = 3;

impl Cluster {
    /// Journals and service logs, without secrets, into `logs`, where the consoles are already.
    /// Returns what likely caused the failure.
    pub async fn save_evidence(&self, logs: &Path) -> Result<Vec<String>> {
        let spec = self.lab.spec();
        let run = &self.run;
        let mut texts = gather(&self.nodes, spec, &run.patience(), &run.redactor).await;
        texts.append(&mut self.kept.lock().unwrap_or_else(|p| p.into_inner()));
        save(&texts, logs, &run.redactor)?;
        let causes = causes(&texts).into_iter().take(CAUSES);
        Ok(causes
            .map(|c| format!("{} ({}:{}: {})", c.meaning, c.text, c.line, c.excerpt))
            .collect())
    }
}

/// Reads journals and service logs of all nodes at once. A node that does not answer gives what it
/// gave until then.
pub async fn gather(
    nodes: &[Node],
    spec: &LabSpec,
    patience: &Patience,
    redactor: &Redactor,
) -> Vec<Text> {
    let mut readers = JoinSet::new();
    for node in nodes {
        let (node, patience, redactor) = (node.clone(), patience.clone(), redactor.clone());
        let plan = collect_plan(&roles(spec, &node.name));
        readers.spawn(async move { of_node(&node, plan, &patience, &redactor).await });
    }
    let mut texts: Vec<Text> = readers.join_all().await.into_iter().flatten().collect();
    texts.sort_by(|a, b| a.name.cmp(&b.name));
    texts
}

async fn of_node(
    node: &Node,
    plan: Vec<(String, String)>,
    patience: &Patience,
    redactor: &Redactor,
) -> Vec<Text> {
    let mut texts = Vec::new();
    let total = plan.len() as u64;
    let read = async {
        for (done, (file, command)) in plan.into_iter().enumerate() {
            patience.events.node(&node.name, format!("reading {file}"), done as u64, total);
            let run = async { node.shell.script(command).await };
            let what = format!("{file} of {}", node.name);
            let name = format!("{}/{file}", node.name);
            // What cannot be read is itself worth a line.
            let mut text = match patience.within(&what, PER_COMMAND, &node.death, run).await {
                Ok(out) => Text::new(name, String::from_utf8_lossy(&out.stdout)),
                Err(e) => Text::unread(name, &e),
            };
            text.content = redactor.clean(&text.content);
            texts.push(text);
        }
        Ok(())
    };
    let what = format!("the evidence of {}", node.name);
    // Late or dead: what was read until then is what there is.
    let _ = patience.within(&what, PER_NODE, &node.death, read).await;
    texts
}

fn roles(spec: &LabSpec, node: &str) -> Vec<Role> {
    let named = spec.nodes.iter().find(|n| n.name == node);
    named
        .into_iter()
        .flat_map(|n| &n.roles)
        .filter_map(|role| match role.as_str() {
            "controller" => Some(Role::Controller),
            "network" => Some(Role::Network),
            "compute" => Some(Role::Compute),
            _ => None,
        })
        .collect()
}

/// Writes the texts below `folder`: folders 0700, files 0600, without secrets.
pub fn save(texts: &[Text], folder: &Path, redactor: &Redactor) -> Result<()> {
    for text in texts {
        let path = folder.join(&text.name);
        let write = || -> std::io::Result<()> {
            let parent = path.parent().unwrap_or(folder);
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(redactor.clean(&text.content).as_bytes())
        };
        write().doing(Kind::Host, || format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::proof::login::KeyPair;
    use crate::engine::inventory::Family;
    use crate::engine::journal::Journal;
    use crate::engine::transport::{Canned, Output};
    use crate::event::Events;
    use crate::lab::keys::SshKey;
    use crate::roles::secrets::Secrets;
    use crate::secret::Secret;
    use crate::wait::Speed;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    #[test]
    fn what_is_saved_is_private_and_has_no_secret() {
        let redactor = Redactor::default();
        redactor.add(&Secret::new("0123456789"));
        let dir = tempfile::tempdir().unwrap();
        let text = Text::new("n/nova.log", "password=0123456789\n");
        save(&[text], dir.path(), &redactor).unwrap();
        let path = dir.path().join("n/nova.log");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "password=[secret]\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = path.parent().unwrap();
        assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn a_run_that_fails_late_leaves_no_secret_in_its_folder() {
        let (secrets, redactor) = (Secrets::generate().unwrap(), Redactor::default());
        secrets.hide_in(&redactor);
        let (login, guest) = (SshKey::ed25519("x").unwrap(), KeyPair::generate().unwrap());
        login.hide_in(&redactor);
        redactor.add_lines(&guest.private);
        let mut all: Vec<_> = secrets.forms().map(|(n, s)| (n.to_owned(), s)).collect();
        all.extend([&login.private_pem(), &guest.private].map(|s| ("key".into(), s.clone())));
        let all: Vec<_> =
            all.iter().flat_map(|(n, s)| s.lines().map(move |l| (n.clone(), l))).collect();
        let said: String =
            all.iter().map(|(name, s)| format!("[1.0] {name}: x={};\n", s.reveal())).collect();

        let spec = LabSpec::load(Path::new("vmtests/labs/one-node.toml")).unwrap();
        // As a service that logs its settings would.
        let stdout = said.clone().into_bytes();
        let says_all = move || Ok(Output { stdout: stdout.clone(), ..Output::default() });
        let shell = Arc::new(Canned::new(says_all));
        let node = Node::new("openstack1", Family::Debian, shell);
        let patience = Patience::new(Speed::new(1.0), Events::silent());
        let mut texts = gather(&[node], &spec, &patience, &redactor).await;
        assert!(texts.len() > 5, "{}", texts.len());
        // As the proof gives what it kept of the instance.
        texts.push(Text::new("instance-console.log", said.clone()));
        let dir = tempfile::tempdir().unwrap();
        save(&texts, dir.path(), &redactor).unwrap();
        let journal = Journal::open(dir.path().join("engine.log"), redactor.clone()).unwrap();
        journal.note("openstack1", &said);
        super::super::secret_scan::in_folder(dir.path(), &all).unwrap().unwrap();
        // The control: the search finds each of them where nothing was washed.
        std::fs::write(dir.path().join("raw.log"), &said).unwrap();
        let found = super::super::secret_scan::in_folder(dir.path(), &all).unwrap().unwrap_err();
        assert!(found.contains("fernet.next in") && found.contains("key in"), "{found}");
        assert!(found.split(", ").all(|one| one.ends_with("raw.log")), "{found}");
    }
}
