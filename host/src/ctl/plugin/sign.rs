//! `callgatectl plugin keygen`, `sign` and `verify`: detached signatures with Ed25519 (RFC 8032) over the whole file.
//!
//! Keys are PEM (RFC 8410) and a signature is its 64 bytes, so that `openssl` can do all of it too.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// Makes a key: `NAME.key`, which only its owner can read, and `NAME.pub`.
///
/// # Errors
/// One of the files is there already, or cannot be written.
pub fn keygen(name: &Path) -> Result<(PathBuf, PathBuf)> {
    let (private, public) = (with_ending(name, ".key"), with_ending(name, ".pub"));
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("cannot get random bytes: {error}"))?;
    let key = SigningKey::from_bytes(&seed);
    // Without the public key in it, which OpenSSL 3.0 does not take.
    let pair = KeypairBytes { secret_key: seed, public_key: None };
    let secret = pair.to_pkcs8_pem(LineEnding::LF).map_err(|error| anyhow!("cannot write down the key: {error}"))?;
    let shown = key.verifying_key().to_public_key_pem(LineEnding::LF);
    let shown = shown.map_err(|error| anyhow!("cannot write down the key: {error}"))?;
    create(&private, 0o600, secret.as_bytes())?;
    create(&public, 0o644, shown.as_bytes())?;
    Ok((private, public))
}

/// Signs `file` into `signature`, or into `FILE.sig`, and says where that is.
///
/// # Errors
/// A file cannot be read or written, or the key is none.
pub fn sign(file: &Path, key: &Path, signature: Option<&Path>) -> Result<PathBuf> {
    let text = read_text(key)?;
    let key = SigningKey::from_pkcs8_pem(&text)
        .map_err(|error| anyhow!("{} is no private key of Ed25519 in PEM: {error}", key.display()))?;
    let signature = signature.map_or_else(|| with_ending(file, ".sig"), Path::to_owned);
    let signed = key.sign(&read(file)?).to_bytes();
    fs::write(&signature, signed).with_context(|| format!("cannot write {}", signature.display()))?;
    Ok(signature)
}

/// Verifies the signature of `file`, which is in `signature` or in `FILE.sig`.
///
/// # Errors
/// A file cannot be read, the key is none, or the signature is not this key's of this file.
pub fn verify(file: &Path, key: &Path, signature: Option<&Path>) -> Result<()> {
    let text = read_text(key)?;
    let public = VerifyingKey::from_public_key_pem(&text)
        .map_err(|error| anyhow!("{} is no public key of Ed25519 in PEM: {error}", key.display()))?;
    let signature = signature.map_or_else(|| with_ending(file, ".sig"), Path::to_owned);
    let bytes = read(&signature)?;
    let Ok(signed) = Signature::from_slice(&bytes) else {
        bail!("{} is no signature of Ed25519: it has {} bytes instead of 64", signature.display(), bytes.len());
    };
    // Strictly: else there are keys of which some signature fits several messages.
    public.verify_strict(&read(file)?, &signed).map_err(|_| {
        anyhow!("{} is not signed by {}: {} does not fit", file.display(), key.display(), signature.display())
    })
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn create(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(content));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
