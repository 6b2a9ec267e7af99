//! The image that the proof's instance boots.

use crate::error::{Error, Result};
use crate::images::inspect::inspect;
use crate::images::manifest::Format;
use crate::lab::spec::{Bytes, LabSpec};
use crate::roles::topology::Role;
use std::path::PathBuf;

/// An image that can be given to the cloud.
#[derive(Clone, Debug)]
pub struct InstanceImage {
    pub name: String,
    /// A qcow2 file whose header was found harmless.
    pub disk: PathBuf,
    pub user: String,
    /// Bytes.
    pub virtual_size: u64,
}

impl InstanceImage {
    /// Reads the header of `disk`; `user` logs in to what boots it.
    pub fn open(name: String, disk: PathBuf, user: String) -> Result<InstanceImage> {
        let found = inspect(&disk)?.require(Some(Format::Qcow2))?;
        if let Some(why) = found.cloud_refuses.first() {
            return Err(Error::image("is an image that OpenStack refuses")
                .at(&disk, None)
                .because(why.clone())
                .hint("convert it: qemu-img convert -O qcow2 -o extended_l2=off FILE NEW.qcow2"));
        }
        let virtual_size = found.virtual_size.unwrap_or(found.bytes);
        Ok(InstanceImage { name, disk, user, virtual_size })
    }

    /// The flavor has the image's virtual size, and a compute node must have room for it.
    pub fn check_disk(&self, spec: &LabSpec) -> Result<()> {
        let computes =
            spec.nodes.iter().filter(|n| n.roles.iter().any(|role| role == Role::Compute.name()));
        // A node without `disk` has its image's size, which is known to be enough for itself alone.
        let Some(largest) = computes.filter_map(|n| n.disk).max() else { return Ok(()) };
        if self.virtual_size < largest {
            return Ok(());
        }
        let (image, node) = (Bytes(self.virtual_size), Bytes(largest));
        Err(Error::input(format!("{image} of disk; the compute nodes have {node}"))
            .at(&self.disk, None)
            .hint("use a smaller image, or a lab whose compute nodes have a larger `disk`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::path::Path;

    #[test]
    fn an_image_larger_than_the_compute_nodes_is_refused() {
        let text = std::fs::read_to_string("vmtests/labs/two-node.toml").unwrap();
        let spec = LabSpec::parse(Path::new("two-node.toml"), &text).unwrap();
        let of = |virtual_size| InstanceImage {
            name: "big".into(),
            disk: "big.qcow2".into(),
            user: "u".into(),
            virtual_size,
        };
        of(1 << 30).check_disk(&spec).unwrap();
        let e = of(40 << 30).check_disk(&spec).unwrap_err();
        assert_eq!(e.to_string(), "big.qcow2: 40 GiB of disk; the compute nodes have 20 GiB");
        assert_eq!(e.kind(), Kind::Input);
    }
}
