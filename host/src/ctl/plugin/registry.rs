//! `callgatectl plugin push` and `pull`: plugins in OCI registries.

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as Waker, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::io::AsyncWrite;

use super::artifact::{self, Artifact};

/// A registry that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to speak with the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TLS.
    Https,
    /// Without, for registries on this machine.
    PlainHttp,
}

/// Pushes a plugin, and says under which name it can be pulled for ever: with its digest.
///
/// # Errors
/// It is no plugin, the reference is none, or the registry does not take it.
pub fn push(reference: &str, file: &Path, transport: Transport) -> Result<String> {
    let image = parse(reference)?;
    let artifact = Artifact::of(file)?;
    let digest = artifact.digest();
    let refused = || format!("cannot push to {reference}");
    runtime()?.block_on(async {
        let (client, credentials) = client(&image, transport);
        client.auth(&image, &credentials, RegistryOperation::Push).await.with_context(refused)?;
        for blob in [artifact.config, artifact.component] {
            let digest = artifact::digest(&blob);
            client.push_blob(&image, blob, &digest).await.with_context(refused)?;
        }
        let kind = OCI_IMAGE_MEDIA_TYPE.parse().context("no media type")?;
        client.push_manifest_raw(&image, artifact.manifest, kind).await.with_context(refused)?;
        anyhow::Ok(())
    })?;
    Ok(format!("{}/{}@{digest}", image.registry(), image.repository()))
}

/// Pulls a plugin into `output`, and says what its manifest's digest is. Whatever the registry sends has the digests that the
/// reference and the manifest say, or is not written.
///
/// # Errors
/// There is none, or it is not what it should be.
pub fn pull(reference: &str, output: &Path, transport: Transport) -> Result<String> {
    let image = parse(reference)?;
    let refused = || format!("cannot pull {reference}");
    let (digest, component) = runtime()?.block_on(async {
        let (client, credentials) = client(&image, transport);
        client.auth(&image, &credentials, RegistryOperation::Pull).await.with_context(refused)?;
        let pulled = client.pull_manifest_raw(&image, &credentials, &[OCI_IMAGE_MEDIA_TYPE]).await;
        let (manifest, _) = pulled.with_context(refused)?;
        if let Some(expected) = image.digest() {
            artifact::check("the manifest", &manifest, None, expected).with_context(refused)?;
        }
        let layer = artifact::layer(&manifest).with_context(refused)?;
        let mut component = Bounded { bytes: Vec::new(), most: layer.size as usize };
        client.pull_blob(&image, &layer, &mut component).await.with_context(refused)?;
        artifact::check("the component", &component.bytes, Some(layer.size), &layer.digest).with_context(refused)?;
        anyhow::Ok((artifact::digest(&manifest), component.bytes))
    })?;
    fs::write(output, component).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(digest)
}

fn parse(reference: &str) -> Result<Reference> {
    reference.parse().with_context(|| format!("{reference:?} names nothing in a registry; write REGISTRY/NAME:TAG"))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime for the network")
}

fn client(image: &Reference, transport: Transport) -> (Client, RegistryAuth) {
    // An error says that it has been done already.
    let _ = rustls::crypto::CryptoProvider::install_default(rustls::crypto::ring::default_provider());
    let protocol = match transport {
        Transport::Https => ClientProtocol::Https,
        Transport::PlainHttp => ClientProtocol::Http,
    };
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(PATIENCE),
        read_timeout: Some(PATIENCE),
        user_agent: concat!("callgatectl/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    (Client::new(config), credentials(image))
}

/// What `docker login` left in `~/.docker/config.json`, or in its helpers.
fn credentials(image: &Reference) -> RegistryAuth {
    match docker_credential::get_credential(image.resolve_registry()) {
        Ok(DockerCredential::UsernamePassword(user, password)) => RegistryAuth::Basic(user, password),
        Ok(DockerCredential::IdentityToken(token)) => RegistryAuth::Bearer(token),
        Err(CredentialRetrievalError::ConfigNotFound | CredentialRetrievalError::NoCredentialConfigured) => {
            RegistryAuth::Anonymous
        }
        Err(error) => {
            tracing::warn!("the credentials for {} cannot be read: {error}", image.registry());
            RegistryAuth::Anonymous
        }
    }
}

/// Takes no more than was announced.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Waker<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.bytes.len() + bytes.len() > self.most {
            let message = format!("the registry sends more than the {} bytes of the component", self.most);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::FileTooLarge, message)));
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
