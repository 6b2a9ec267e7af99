//! The disk of an image that was built, as it is kept.

use super::Job;
use crate::error::Result;
use crate::host::tool::Tool;
use std::path::Path;

impl Job<'_> {
    pub(super) async fn to_qcow2(&self, raw: &Path, qcow2: &Path) -> Result<()> {
        let convert = Tool::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]);
        convert.arg(raw).arg(qcow2).log(&self.log).run(|_| {}).await
    }
}
