//! The guest's own boot loader.

use super::test;
use crate::bench::{Bench, COMMAND, run};
use crate::registry::Test;
use stackproof::error::Result;
use stackproof::images::inspect::inspect;

pub const TESTS: &[Test] =
    &[test("disk::the_small_disk_boots_by_bios_and_says_its_markers", 1, || run(by_bios()))];

/// Bytes.
const MOST: u64 = 20_000_000;

async fn by_bios() -> Result<()> {
    let mut bench = Bench::new().await?;
    let found = inspect(&bench.image.disk)?.require(None)?;
    assert!(found.bytes <= MOST, "the file has {} bytes", found.bytes);
    let size = found.virtual_size.expect("a qcow2 has one");
    assert!(size <= MOST, "the disk has {size} bytes");

    (bench.image.kernel, bench.image.initrd) = (None, None);
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    for marker in
        ["if-info: management,up,192.168.103.11,24,", "=== probe-guest: current=1 uptime="]
    {
        node.vm.wait_for(marker, 0, COMMAND).await?;
    }
    let ssh = bench.ssh(&lab, node)?;
    let cmdline = bench.ask(&ssh, node, "cat /proc/cmdline").await?;
    assert!(cmdline.contains("probe.boot=disk"), "{cmdline}");
    lab.stop().await?;
    bench.assert_nothing_left();
    Ok(())
}
