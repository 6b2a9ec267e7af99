//! Machines that run and never boot.

use super::test;
use crate::bench::{Bench, run};
use crate::registry::Test;
use stackproof::error::{Context, Kind, Result};
use stackproof::wait::{Patience, Speed};
use std::time::Duration;

pub const TESTS: &[Test] = &[
    test("fault::a_blank_disk_ends_a_bounded_wait_that_names_node_and_console", 1, || {
        run(blank_disk())
    }),
    test("fault::a_kernel_that_panics_ends_the_boot_with_its_last_words", 1, || run(panics())),
];

async fn blank_disk() -> Result<()> {
    let mut bench = Bench::new().await?;
    let disk = bench.root().join("blank.qcow2");
    let status = tokio::process::Command::new(&bench.options.hypervisor.img)
        .args(["create", "-q", "-f", "qcow2"])
        .args([disk.as_os_str(), "16M".as_ref()])
        .status()
        .await
        .doing(Kind::Host, || "qemu-img".into())?;
    assert!(status.success());
    (bench.image.disk, bench.image.kernel, bench.image.initrd) = (disk, None, None);
    // The bound itself is what is tested.
    bench.options.boots = Duration::from_secs(10);
    let patience = Patience::new(Speed::new(1.0), bench.patience.events.clone());
    let error = bench.start_with(&["blank"], &patience).await.expect_err("nothing boots");
    assert_eq!(error.kind(), Kind::Lab, "{error}");
    assert!(error.message().starts_with("blank did not boot"), "{error}");
    assert!(error.message().contains("waited 10 s"), "{error}");
    assert!(error.file().is_some_and(|(f, _)| f.ends_with("blank.console.log")), "{error}");
    assert!(error.hint_text().is_some());
    bench.assert_nothing_left();
    Ok(())
}

async fn panics() -> Result<()> {
    let mut bench = Bench::new().await?;
    bench.image.append += " rdinit=/bin/false";
    let error = bench.start(&["lost"]).await.expect_err("its init is /bin/false");
    assert_eq!(error.kind(), Kind::Lab, "{error}");
    let text = error.to_string();
    assert!(text.contains("lost is lost: its kernel panicked"), "{text}");
    let tail = error.evidence_lines().join("\n");
    assert!(tail.contains("Kernel panic - not syncing: Attempted to kill init"), "{tail}");
    bench.assert_nothing_left();
    Ok(())
}
