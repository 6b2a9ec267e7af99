//! What every role is given, and the few values that several services share.

use super::resources::Value;
use super::secrets::Secrets;
use super::topology::{Host, Topology};
use crate::engine::plan::Step;
use crate::engine::resource::Resource;
use crate::engine::resources::Ready;
use crate::secret::Secret;

#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub topology: &'a Topology,
    pub secrets: &'a Secrets,
}

/// What speaks to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// PyMySQL. The only one for a process of green threads: one of them that waited in C for a row
    /// that another has locked would wait for ever.
    Green,
    /// MySQLdb, in C: a sixth less of neutron's API's work. For processes of real threads, which are
    /// those of uwsgi, nova's aside.
    Native,
}

/// Keys of one section.
pub type Keys = Vec<(&'static str, Value)>;

/// Writes keys as `keys![ "name" => value, … ]`, whatever the values' types.
macro_rules! keys {
    ($($key:literal => $value:expr),* $(,)?) => {
        vec![$(($key, $crate::roles::resources::Value::from($value))),*]
    };
}
pub(crate) use keys;

/// Makes a list of resources of different types.
macro_rules! resources {
    ($($resource:expr),* $(,)?) => {
        vec![$(Box::new($resource) as Box<dyn $crate::engine::resource::Resource>),*]
    };
}
pub(crate) use resources;

impl<'a> Context<'a> {
    pub fn controller(&self) -> &'a Host {
        self.topology.controller()
    }

    /// `http://CONTROLLER:port`
    pub fn url(&self, port: u16) -> String {
        format!("http://{}:{port}", self.controller().address)
    }

    pub fn keystone(&self) -> String {
        self.url(super::keystone::PORT)
    }

    /// The SQLAlchemy URL of a service's database over the network. Has the password in it.
    pub fn database_url(&self, service: &str, database: &str) -> Secret {
        Secret::new(format!(
            "mysql+pymysql://{service}:{}@{}/{database}",
            self.secrets.database(service).reveal(),
            self.controller().address
        ))
    }

    /// The same, for what runs beside the database and asks it a hundred times a request: by its
    /// socket (decision 10). Has the password in it.
    pub fn local_database_url(&self, driver: Driver, service: &str, database: &str) -> Secret {
        let driver = match driver {
            Driver::Green => "pymysql",
            Driver::Native => "mysqldb",
        };
        Secret::new(format!(
            "mysql+{driver}://{service}:{}@localhost/{database}?unix_socket=/run/mysqld/mysqld.sock",
            self.secrets.database(service).reveal()
        ))
    }

    /// The message queue's URL. Has the password in it.
    pub fn transport_url(&self) -> Secret {
        Secret::new(format!(
            "rabbit://openstack:{}@{}:5672/",
            self.secrets.rabbit().reveal(),
            self.controller().address
        ))
    }

    /// How `user` logs in to keystone to call another service.
    pub fn credentials(&self, user: &str) -> Keys {
        keys![
            "auth_type" => "password",
            "auth_url" => self.keystone(),
            "region_name" => self.topology.region.clone(),
            "project_domain_name" => "Default",
            "user_domain_name" => "Default",
            "project_name" => "service",
            "username" => user,
            "password" => self.secrets.user(user),
        ]
    }

    /// `[keystone_authtoken]`: how the API of `user`'s service checks tokens.
    pub fn authtoken(&self, user: &str) -> Keys {
        let mut keys = self.credentials(user);
        keys.extend(keys![
            "www_authenticate_uri" => self.keystone(),
            "memcached_servers" => format!("{}:11211", self.controller().address),
        ]);
        keys
    }

    /// A step on `host` named `what@host`.
    pub fn step(&self, what: &str, host: &Host, resources: Vec<Box<dyn Resource>>) -> Step {
        Step { resources, ..Step::new(on(what, host), &host.name) }
    }
}

/// An API is ready when it answers: uwsgi takes connections long before its application is loaded.
pub fn answers(url: &str) -> Ready {
    Ready::Command(format!("curl -s -m 30 -o /dev/null {url}/"))
}

/// The id of the step `what` on `host`.
pub fn on(what: &str, host: &Host) -> String {
    format!("{what}@{}", host.name)
}

/// Names the steps that must be done before this one.
pub trait Follows {
    fn follows(self, steps: impl IntoIterator<Item = String>) -> Self;
}

impl Follows for Step {
    fn follows(mut self, steps: impl IntoIterator<Item = String>) -> Step {
        self.after.extend(steps);
        self
    }
}
