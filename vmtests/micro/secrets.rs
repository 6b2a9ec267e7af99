//! What a run writes down holds none of its secrets, even where a guest shows them.

use super::test;
use crate::bench::{Bench, run};
use crate::registry::Test;
use stackproof::engine::apply::Engine;
use stackproof::engine::journal::Journal;
use stackproof::engine::plan::{Plan, Step};
use stackproof::engine::resources::File;
use stackproof::error::{Context, Kind, Result};
use stackproof::wait::Death;
use std::path::Path;

pub const TESTS: &[Test] = &[test("secrets::of_a_run_are_in_nothing_that_it_writes", 1, || {
    run(nothing_written_holds_them())
})];

/// No secret: what is written down would show this.
const PLANT: &str = "planted-and-never-registered";

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n";

async fn nothing_written_holds_them() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let ssh = bench.ssh(&lab, node)?;
    let login = lab.login_key().private_pem();
    let seed = std::fs::read(lab.dir().join("a/seed.img")).doing(Kind::Host, || "seed".into())?;
    let host = private_key_in(&String::from_utf8_lossy(&seed));
    // The last line of a key's body is the one that holds nothing but private bytes.
    let secrets: Vec<&str> = [login.reveal(), &host].map(private_lines).concat();
    assert!(secrets.len() >= 6, "two keys of some lines");

    // The guest shows its own key and ours on its console, and the control beside them.
    let show = format!(
        "mount -t vfat -o ro /dev/vdb /mnt && cat /mnt/hostkey >/dev/console && umount /mnt && \
         printf '%s\\n' '{}' {PLANT}-console >/dev/console; for i in 1 2; do echo >/srv$i; done",
        login.reveal()
    );
    bench.ask(&ssh, node, &show).await?;
    node.vm.wait_for(&format!("{PLANT}-console"), 0, crate::bench::COMMAND).await?;
    // A plain file whose difference tells a line of the key, and one that tells the control.
    let journal = Journal::open(bench.logs().join("engine.log"), bench.redactor.clone())?;
    let engine = Engine::new(vec![bench.engine_node(&lab, node)?], bench.patience.clone(), journal);
    let steps = Step::new("leak", "a")
        .with(File::new("/srv1", secrets[1]))
        .with(File::new("/srv2", format!("{PLANT}-journal\n")));
    let report = engine.apply(Plan { steps: vec![steps] }, &Death::never()).await?;
    bench.patience.events.info(format!("{PLANT}-event"));
    bench.event(&format!("{PLANT}-event")).await?;
    lab.stop().await?;

    let logs = read_all(&bench.logs());
    let events = bench.events().join("\n");
    let report = format!("{report:?}");
    for (what, text) in [("logs", &logs), ("events", &events), ("report", &report)] {
        assert!(text.contains(PLANT), "the control is not found in the {what}: {text}");
        for secret in &secrets {
            assert!(!text.contains(secret), "the {what} hold a line of a private key");
        }
    }
    for place in ["console", "journal"] {
        assert!(logs.contains(&format!("{PLANT}-{place}")), "no control of the {place}");
    }
    assert!(logs.matches("[secret]").count() >= secrets.len(), "they were shown and hidden");
    Ok(())
}

/// The first private key in a text that holds one as a file.
fn private_key_in(text: &str) -> String {
    let from = text.rfind(BEGIN).expect("the seed holds the host key as a file");
    let rest = &text[from..];
    let to = rest.find("-----END").expect("the key has an end");
    rest[..to].to_owned()
}

fn private_lines(pem: &str) -> Vec<&str> {
    // The first line of a body is the format's own words, the same in every key.
    pem.lines().filter(|l| !l.starts_with("-----") && !l.is_empty()).skip(1).collect()
}

fn read_all(folder: &Path) -> String {
    let files = folder.read_dir().expect("the logs").flatten();
    let read = |e: std::fs::DirEntry| std::fs::read(e.path()).expect("a log");
    files.map(|e| String::from_utf8_lossy(&read(e)).into_owned()).collect()
}
