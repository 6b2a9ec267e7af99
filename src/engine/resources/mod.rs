//! The generic resources. Each file is one kind; all are pure and know no OpenStack.
//!
//! ```
//! use stackproof::engine::resources::*;
//! use stackproof::secret::Secret;
//!
//! let password = Secret::new("not-so-secret");
//! let all: Vec<Box<dyn stackproof::engine::resource::Resource>> = vec![
//!     Package::new(["keystone", "memcached"]).boxed(),
//!     Directory::new("/etc/keystone/fernet-keys").mode(0o700).owner("keystone", "keystone").boxed(),
//!     File::new("/etc/chrony/chrony.conf", "server openstack1 iburst\n").mode(0o644).boxed(),
//!     File::secret("/root/key", "PRIVATE").boxed(),
//!     Ini::new("/etc/keystone/keystone.conf")
//!         .set("token", "provider", "fernet")
//!         .set("database", "connection", Secret::new("mysql+pymysql://k:not-so-secret@db/keystone"))
//!         .unset("DEFAULT", "log_file")
//!         .boxed(),
//!     EnvFile::new("/etc/default/etcd").set("ETCD_NAME", "controller").boxed(),
//!     Lines::new("/home/stack/.ssh/authorized_keys").line("ssh-ed25519 AAAA me").mode(0o600).boxed(),
//!     Block::new("/etc/profile", "locale", "export LANG=en_US.utf-8\n").boxed(),
//!     Masked::new(["keepalived", "iscsid.socket"]).boxed(),
//!     Unit::new("keystone")
//!         .reads(["/etc/keystone/keystone.conf"])
//!         .ready(Ready::Port(5000))
//!         .boxed(),
//!     Database::new("keystone").boxed(),
//!     Account::new("keystone", "%", password.clone()).grant("keystone").boxed(),
//!     RabbitUser::new("openstack", password).boxed(),
//!     OvsBridge::new("br-ex").port("eth1").boxed(),
//!     OvsOption::new("max-revalidator", "10000").boxed(),
//! ];
//! # assert_eq!(all.len(), 15);
//! ```

mod block;
mod directory;
mod edit;
mod env_file;
mod file;
mod hostname;
mod hosts;
mod ini;
mod kernel_module;
mod lines;
mod locale;
mod masked;
mod mysql;
mod ovs_bridge;
mod ovs_option;
mod package;
pub mod rabbit_user;
mod symlink;
mod sysctl;
mod target;
mod tcp_port;
mod unit;
mod user_account;

pub use block::Block;
pub use directory::Directory;
pub use env_file::EnvFile;
pub use file::File;
pub use hostname::Hostname;
pub use hosts::Hosts;
pub use ini::Ini;
pub use kernel_module::KernelModule;
pub use lines::Lines;
pub use locale::Locale;
pub use masked::Masked;
pub use mysql::{Account, Database};
pub use ovs_bridge::OvsBridge;
pub use ovs_option::OvsOption;
pub use package::Package;
pub use rabbit_user::RabbitUser;
pub use symlink::SymLink;
pub use sysctl::Sysctl;
pub use tcp_port::TcpPort;
pub use unit::{Ready, Unit};
pub use user_account::UserAccount;

use crate::engine::resource::Resource;
use crate::secret::Secret;

/// A declared value, in clear or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Plain(String),
    Secret(Secret),
}

impl Value {
    pub fn reveal(&self) -> &str {
        match self {
            Value::Plain(text) => text,
            Value::Secret(secret) => secret.reveal(),
        }
    }
    pub fn is_secret(&self) -> bool {
        matches!(self, Value::Secret(_))
    }
    /// `name: old -> new`, or `name: differs` where either would show a secret.
    fn difference(&self, name: &str, seen: Option<&str>) -> String {
        match (self, seen) {
            (Value::Plain(new), Some(old)) => format!("{name}: {old} -> {new}"),
            (Value::Plain(new), None) => format!("{name}: absent -> {new}"),
            (Value::Secret(_), Some(_)) => format!("{name}: differs"),
            (Value::Secret(_), None) => format!("{name}: absent"),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Plain(text.into())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Plain(text)
    }
}
impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Value::Plain(text.clone())
    }
}
impl From<Secret> for Value {
    fn from(secret: Secret) -> Self {
        Value::Secret(secret)
    }
}
impl From<&Secret> for Value {
    fn from(secret: &Secret) -> Self {
        Value::Secret(secret.clone())
    }
}
impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Plain(number.to_string())
    }
}
impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Plain(truth.to_string())
    }
}
impl From<std::net::Ipv4Addr> for Value {
    fn from(address: std::net::Ipv4Addr) -> Self {
        Value::Plain(address.to_string())
    }
}

/// `.boxed()` on every resource, so that lists of them read well.
pub trait Boxed: Resource + Sized + 'static {
    fn boxed(self) -> Box<dyn Resource> {
        Box::new(self)
    }
}
impl<R: Resource + 'static> Boxed for R {}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
