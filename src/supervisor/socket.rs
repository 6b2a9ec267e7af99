//! Unix sockets by directory and name. The address of a socket holds 107 bytes and a store may lie
//! deeper, so the directory is named by a descriptor of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};

fn short(dir: &File, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())
}

/// Listens on `dir/name`, which must not exist. The directory is ours alone (0700), and so is the
/// socket.
pub fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let open = File::open(dir)?;
    let listener = UnixListener::bind(short(&open, name))?;
    std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let open = File::open(dir)?;
    UnixStream::connect(short(&open, name)).await
}
