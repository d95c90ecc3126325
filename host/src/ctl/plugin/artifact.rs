//! A plugin as an OCI artifact, in the layout that CNCF's TAG Runtime wrote down for Wasm: one layer with the component, and a
//! configuration that says what it imports and exports (tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde_json::json;

use super::sandbox::{Limits, Sandbox};
use super::sha256;

const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const LAYER: &str = "application/wasm";
/// A manifest of ours has a kilobyte.
pub(super) const MANIFEST_SIZE: usize = 4 << 20;
/// The largest component that a host loads.
pub(super) const COMPONENT_SIZE: usize = 64 << 20;

/// A plugin with what stands around it. The same file makes the same artifact, wherever and whenever.
pub(super) struct Artifact {
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
    pub(super) component: Vec<u8>,
}

impl Artifact {
    /// Of a file that this host can load.
    pub(super) fn of(file: &Path) -> Result<Self> {
        let sandbox = Sandbox::open(file)?;
        let described = sandbox.describe(Limits::default());
        let described = described.map_err(|error| anyhow::anyhow!("{} {error}", file.display()))?;
        let (imports, exports) = (sandbox.imports(), sandbox.exports());
        let component = sandbox.bytes;
        let config = json!({
            // Required, and a time of today would make another artifact of the same plugin tomorrow.
            "created": "1970-01-01T00:00:00Z",
            "architecture": "wasm",
            // The layout's word for a component.
            "os": "wasip2",
            "layerDigests": [digest(&component)],
            "component": { "exports": exports, "imports": imports, "target": null },
        });
        let config = config.to_string().into_bytes();
        let annotations = BTreeMap::from([
            ("org.opencontainers.image.title".to_owned(), described.name),
            ("org.opencontainers.image.version".to_owned(), described.version),
        ]);
        let manifest = OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(CONFIG, &config),
            layers: vec![descriptor(LAYER, &component)],
            annotations: Some(annotations),
            ..OciImageManifest::default()
        };
        Ok(Self { manifest: serde_json::to_vec(&manifest)?, config, component })
    }

    /// What the manifest calls itself.
    pub(super) fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

/// The layer of a manifest that holds the component.
pub(super) fn layer(manifest: &[u8]) -> Result<OciDescriptor> {
    let manifest: OciImageManifest = serde_json::from_slice(manifest).context("its manifest is no image manifest")?;
    if manifest.config.media_type != CONFIG {
        bail!("it is no plugin: its configuration is {:?}, not {CONFIG:?}", manifest.config.media_type);
    }
    let Ok([layer]) = <[OciDescriptor; 1]>::try_from(manifest.layers) else {
        bail!("it is no plugin: it has not one layer");
    };
    if layer.media_type != LAYER {
        bail!("it is no plugin: its layer is {:?}, not {LAYER:?}", layer.media_type);
    }
    if !(0..=COMPONENT_SIZE as i64).contains(&layer.size) {
        bail!("its component has {} bytes; a host loads up to {COMPONENT_SIZE}", layer.size);
    }
    Ok(layer)
}

/// Whether these bytes are those that somebody described.
pub(super) fn check(what: &str, bytes: &[u8], size: Option<i64>, expected: &str) -> Result<()> {
    if !expected.starts_with("sha256:") {
        bail!("the digest of {what} is {expected:?}; only sha256 is known");
    }
    let actual = digest(bytes);
    if actual != expected {
        bail!("{what} has the digest {actual}, and should have {expected}");
    }
    if let Some(size) = size.filter(|size| *size != bytes.len() as i64) {
        bail!("{what} has {} bytes, and should have {size}", bytes.len());
    }
    Ok(())
}

pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

pub(super) fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest(bytes),
        size: bytes.len() as i64,
        ..OciDescriptor::default()
    }
}
