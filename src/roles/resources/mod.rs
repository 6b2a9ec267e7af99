//! Resources that only OpenStack has. What is general lives in `engine`.

mod bootstrap;
mod cells;
mod conf;
mod identity;
mod mapped;
mod schema;

pub use bootstrap::Bootstrap;
pub use cells::Cells;
pub use conf::{Conf, Value};
pub use identity::{Endpoint, Identity, Service, User};
pub use mapped::HostsMapped;
pub use schema::{Heads, Schema};

/// Runs the rest of the line as a service's user, without a login shell or PAM in between.
fn as_user(user: &str) -> String {
    format!("setpriv --reuid={user} --regid={user} --init-groups")
}
