//! Projects and users, and what they bring: flavor, image, key pair.

use super::{pass, wrong};
use crate::cloud::compute::Compute;
use crate::cloud::identity::Identity;
use crate::cloud::image::Images;
use crate::cloud::proof::context::{Context, fill, known, unless_refused};
use crate::cloud::proof::ledger::Batch;
use crate::cloud::proof::login::KeyPair;
use crate::cloud::proof::story::Finding;
use crate::cloud::session::{Credentials, Service, Session};
use crate::error::{Context as _, Kind, Result};
use crate::secret::Secret;
use crate::wait::Poll;
use sha2::{Digest, Sha512};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub async fn member(c: &Context) -> Result<Finding> {
    arrives(c, "member", Batch::End, &c.member).await
}

pub async fn stranger(c: &Context) -> Result<Finding> {
    arrives(c, "stranger", Batch::Stranger, &c.stranger).await
}

async fn arrives(
    c: &Context,
    who: &str,
    batch: Batch,
    place: &OnceLock<Session>,
) -> Result<Finding> {
    let session = newcomer(c, who, batch).await?;
    let seen = format!(
        "`{}` in a fresh project; no role and no token at first, then role member",
        session.user()
    );
    fill(place, session)?;
    pass(seen)
}

/// A new user in a new project, who can do nothing there before having a role (S4.5).
async fn newcomer(c: &Context, who: &str, batch: Batch) -> Result<Session> {
    let admin = c.admin()?;
    let name = format!("{who}-{}", c.run);
    let identity = Identity(admin);
    let project = identity.create_project(&name, "made by stackproof for its proof").await?;
    c.ledger.add_project(batch, admin, &name, &project.id);
    let password = Secret::generate(16).doing(Kind::Host, || "no random numbers".into())?;
    c.inputs.redactor.add(&password);
    let user = identity.create_user(&name, &password).await?;
    let path = format!("/users/{}", user.id);
    c.ledger.add_to(batch, admin, format!("user {name}"), Service::Identity, path);
    let who = Credentials {
        user: name.clone(),
        password,
        project: name.clone(),
        domain: c.inputs.admin.domain.clone(),
    };
    let before = identity.assignments(&user.id).await?;
    if !before.is_empty() {
        return Err(wrong(format!("the new user `{name}` has {} roles already", before.len())));
    }
    match c.login(who.clone()).await {
        Ok(_) => return Err(wrong(format!("`{name}` got a token without having a role"))),
        Err(e) if e.is(401) => {}
        Err(e) => return Err(e.into()),
    }
    let role = identity.role("member").await?.ok_or_else(|| wrong("there is no role `member`"))?;
    identity.grant(&project.id, &user.id, &role.id).await?;
    let after = identity.assignments(&user.id).await?;
    let is_ours = after.len() == 1
        && after[0].role.id == role.id
        && after[0].scope["project"]["id"] == project.id;
    if !is_ours {
        return Err(wrong(format!("`{name}` should have the role member alone: {after:?}")));
    }
    Ok(c.login(who).await?)
}

pub async fn flavor(c: &Context) -> Result<Finding> {
    let (ram, disk) = (c.inputs.image.ram(), c.inputs.image.disk());
    let name = format!("proof-{}", c.run);
    let (admin, member) = (c.admin()?, c.member()?);
    let note = |id: &str| {
        let path = format!("/flavors/{id}");
        c.ledger.add_to(Batch::Ingredients, admin, "flavor", Service::Compute, path);
    };
    let refusal = match Compute(member).create_flavor(&name, ram, disk, 1).await {
        Err(e) if e.is(403) => e.message,
        Err(e) => return Err(e.into()),
        Ok(made) => {
            note(&made.id);
            return Err(wrong("an ordinary member could create a flavor"));
        }
    };
    let made = Compute(admin).create_flavor(&name, ram, disk, 1).await?;
    note(&made.id);
    fill(&c.flavor, made.id)?;
    pass(format!("member: 403 ({refusal}); admin: {ram} MiB, {disk} GiB, 1 vCPU"))
}

pub async fn image(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let (file, disk) = (c.inputs.image.path.clone(), c.inputs.image.disk());
    let name = image_name(c);
    let (size, digest) = sha512(file.clone()).await?;
    let made = Images(member).create(&name, disk).await?;
    c.ledger.add_to(
        Batch::Ingredients,
        member,
        "image",
        Service::Image,
        format!("/images/{}", made.id),
    );
    Images(member).upload(&made.id, &file).await?;

    let id = made.id.as_str();
    let image = c
        .until("the image to be active", 30, 2, || async move {
            match Images(member).show(id).await {
                Ok(Some(image)) => match image.status.as_str() {
                    "active" => Poll::Ready(image),
                    "killed" | "deleted" | "pending_delete" => {
                        Poll::Failed(wrong(format!("glance made it {}", image.status)))
                    }
                    status => Poll::NotYet(format!("it is {status}")),
                },
                Ok(None) => Poll::Failed(wrong("it is gone")),
                Err(e) => unless_refused(e),
            }
        })
        .await?;
    if image.size != Some(size) {
        return Err(wrong(format!("{size} bytes were sent, glance has {:?}", image.size)));
    }
    let mut identical = "same size";
    if image.os_hash_algo.as_deref() == Some("sha512") {
        if image.os_hash_value.as_deref() != Some(&digest) {
            return Err(wrong(format!("glance's sha512 differs from that of {}", file.display())));
        }
        identical = "same sha512";
    }
    if (image.visibility.as_str(), image.min_disk) != ("private", disk) {
        return Err(wrong(format!("it should be private with min_disk {disk}: {image:?}")));
    }
    let seen = format!("`{name}`: {size} bytes, {identical}, min_disk {disk}");
    fill(&c.image, made.id)?;
    pass(seen)
}

fn image_name(c: &Context) -> String {
    format!("{}-{}", c.inputs.image.name, c.run)
}

pub async fn image_unseen(c: &Context) -> Result<Finding> {
    let (id, name) = (known(&c.image, "the image")?, image_name(c));
    // The owner's eyes are the control: nobody sees what is gone.
    if Images(c.member()?).show(id).await?.is_none() {
        return Err(wrong(format!("its owner does not see `{name}` either")));
    }
    let stranger = Images(c.stranger()?);
    if stranger.show(id).await?.is_some() || !stranger.named(&name).await?.is_empty() {
        return Err(wrong("a user of another project sees the private image"));
    }
    pass(format!("a stranger gets 404 for `{name}` and finds none of that name; its owner sees it"))
}

/// Size and digest of a file.
async fn sha512(path: PathBuf) -> Result<(u64, String)> {
    fn read(path: &Path) -> std::io::Result<(u64, String)> {
        let mut hash = Sha512::new();
        let size = std::io::copy(&mut std::fs::File::open(path)?, &mut Sink(&mut hash))?;
        Ok((size, hash.finalize().iter().map(|b| format!("{b:02x}")).collect()))
    }
    struct Sink<'a>(&'a mut Sha512);
    impl std::io::Write for Sink<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let file = path.clone();
    tokio::task::spawn_blocking(move || read(&path))
        .await
        .doing(Kind::Internal, || "hashing the image".into())?
        .map_err(|e| {
            crate::error::Error::image("the instance image cannot be read")
                .at(file, None)
                .because(e)
        })
}

pub async fn key_pair(c: &Context) -> Result<Finding> {
    let member = c.member()?;
    let key = KeyPair::generate()?;
    c.inputs.redactor.add_lines(&key.private);
    let name = format!("key-{}", c.run);
    let fingerprint = Compute(member).import_key(&name, &key.public).await?;
    c.ledger.add_to(
        Batch::Ingredients,
        member,
        "key pair",
        Service::Compute,
        format!("/os-keypairs/{name}"),
    );
    fill(&c.key, key)?;
    pass(format!("ECDSA P-256, fingerprint {fingerprint}"))
}

/// The name that [`key_pair`] gave the key.
pub fn key_name(c: &Context) -> Result<String> {
    known(&c.key, "the key pair").map(|_| format!("key-{}", c.run))
}
