//! A look at the nodes, for what the outside cannot see: the namespaces of routers and of DHCP.

use super::login::Ran;
use crate::cloud::Later;
use crate::error::Result;

pub trait Nodes: Send + Sync {
    /// Runs a POSIX shell script as root on the node of that name. The script is shown to nobody.
    fn run<'a>(&'a self, node: &'a str, script: String) -> Later<'a, Result<Ran>>;
}
