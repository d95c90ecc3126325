//! `callgatectl plugin save` and `load`: plugins in files, for places without a registry. An archive is an OCI image layout
//! (github.com/opencontainers/image-spec/blob/main/image-layout.md) in a tar, which other tools push to registries.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_client::manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use serde::{Deserialize, Serialize};

use super::artifact::{self, Artifact, COMPONENT_SIZE, MANIFEST_SIZE};

const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";
const NAME: &str = "org.opencontainers.image.ref.name";

/// `index.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    manifests: Vec<OciDescriptor>,
}

/// Saves a plugin into an archive, under a name if there is one, and returns the digest of its manifest.
///
/// # Errors
/// It is no plugin, or the archive cannot be written.
pub fn save(file: &Path, archive: &Path, name: Option<&str>) -> Result<String> {
    let artifact = Artifact::of(file)?;
    let digest = artifact.digest();
    let mut manifest = artifact::descriptor(OCI_IMAGE_MEDIA_TYPE, &artifact.manifest);
    manifest.annotations = name.map(|name| BTreeMap::from([(NAME.to_owned(), name.to_owned())]));
    let index =
        Index { schema_version: 2, media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()), manifests: vec![manifest] };
    let failed = || format!("cannot write {}", archive.display());
    let mut tar = tar::Builder::new(File::create(archive).with_context(failed)?);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).with_context(failed)
    };
    add("oci-layout", LAYOUT.as_bytes())?;
    add("index.json", &serde_json::to_vec(&index)?)?;
    for blob in [&artifact.manifest, &artifact.config, &artifact.component] {
        add(&path(&artifact::digest(blob)), blob)?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).with_context(failed)?;
    Ok(digest)
}

/// Takes a plugin out of an archive: the one of this name, or the only one. Returns the digest of its manifest.
///
/// # Errors
/// There is none, or not all of it has the digests that it should have.
pub fn load(archive: &Path, output: &Path, name: Option<&str>) -> Result<String> {
    let (digest, component) = read(archive, name).with_context(|| format!("cannot load {}", archive.display()))?;
    fs::write(output, component).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(digest)
}

fn read(archive: &Path, name: Option<&str>) -> Result<(String, Vec<u8>)> {
    entry(archive, "oci-layout", MANIFEST_SIZE).context("it is no OCI image layout")?;
    let index: Index =
        serde_json::from_slice(&entry(archive, "index.json", MANIFEST_SIZE)?).context("its index.json is no index")?;
    let named = |manifest: &OciDescriptor| manifest.annotations.as_ref().and_then(|all| all.get(NAME)).cloned();
    let mut found = index.manifests.iter().filter(|manifest| name.is_none() || named(manifest).as_deref() == name);
    let manifest = match (found.next(), found.next()) {
        (Some(manifest), None) => manifest,
        _ => {
            let names: Vec<String> = index.manifests.iter().filter_map(named).collect();
            bail!("which one is meant? It has {}; choose with --name", names.join(", "))
        }
    };
    let bytes = entry(archive, &path(&manifest.digest), MANIFEST_SIZE)?;
    artifact::check("the manifest", &bytes, Some(manifest.size), &manifest.digest)?;
    let layer = artifact::layer(&bytes)?;
    let component = entry(archive, &path(&layer.digest), COMPONENT_SIZE)?;
    artifact::check("the component", &component, Some(layer.size), &layer.digest)?;
    Ok((manifest.digest.clone(), component))
}

/// Where a blob stands in the layout.
fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// A file of the archive. Nothing is unpacked, so that names in it lead nowhere.
fn entry(archive: &Path, name: &str, most: usize) -> Result<Vec<u8>> {
    let mut tar = tar::Archive::new(File::open(archive)?);
    for entry in tar.entries()? {
        let entry = entry?;
        let path = entry.path()?;
        if path.strip_prefix(".").unwrap_or(&path) != Path::new(name) {
            continue;
        }
        if entry.size() > most as u64 {
            bail!("{name} has {} bytes, more than the {most} that it may have", entry.size());
        }
        let mut bytes = Vec::new();
        entry.take(most as u64).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    bail!("there is no {name} in it")
}
