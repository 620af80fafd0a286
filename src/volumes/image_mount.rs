//! Mounts of type `image` in an OCI specification.
//!
//! A client without containerd's CRI plugin asks for an image volume by a mount of this form:
//!
//! ```json
//! { "destination": "/models", "type": "image", "source": "registry.example/models:1",
//!   "options": ["ro", "subpath=large/v2", "snapshotter=overlayfs"] }
//! ```
//!
//! `source` is the image's full name, as `ctr images ls` shows it; the image has to be unpacked. All options may be left
//! out: a volume is always read-only (`rw` is refused), `subpath` names a file or folder within the image, `snapshotter`
//! the one for which it is unpacked (`overlayfs`). `nosuid`, `nodev`, `noexec` and propagation (`rprivate`, `rslave` …)
//! go to the bind mount that takes its place.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::mounts::{
    Error,
    pod_files::{mapping, mounts_of},
};

/// An image volume that a specification asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMount {
    /// Where the container sees it.
    pub destination: String,
    pub reference: String,
    /// A file or folder within the image.
    pub sub_path: Option<PathBuf>,
    /// Who has the image's snapshots.
    pub snapshotter: Option<String>,
    passed_on: Vec<String>,
}

/// The image volumes that `spec` asks for, in its order.
pub fn find(spec: &Value) -> Result<Vec<ImageMount>, Error> {
    let mounts = spec.get("mounts").and_then(Value::as_array);
    let images = mounts.into_iter().flatten().filter(|mount| is_image(mount));
    images.map(parse).collect()
}

/// Replaces each image volume by a bind mount of the path on the node that `path_of` gives for it.
/// On an error `spec` is as it was.
pub fn replace(
    spec: &mut Value,
    mut path_of: impl FnMut(&ImageMount) -> Result<PathBuf, Error>,
) -> Result<(), Error> {
    let images = find(spec)?;
    if images.is_empty() {
        return Ok(());
    }
    let binds = images
        .iter()
        .map(|image| bind(image, &path_of(image)?))
        .collect::<Result<Vec<_>, Error>>()?;
    let mounts = mounts_of(spec)?;
    let mapping = mapping(mounts);
    let places = mounts.iter_mut().filter(|mount| is_image(mount));
    for (place, bind) in places.zip(binds) {
        let (Some(place), Value::Object(mut bind)) = (place.as_object_mut(), bind) else {
            continue;
        };
        if !place.contains_key("uidMappings") {
            bind.extend(mapping.clone());
        }
        // What else the mount has, it keeps.
        place.extend(bind);
    }
    Ok(())
}

fn is_image(mount: &Value) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("image")
}

fn parse(mount: &Value) -> Result<ImageMount, Error> {
    let text = |key| mount.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (destination, reference) = (text("destination"), text("source"));
    let what = format!("image volume at {destination:?}");
    let invalid = |reason: String| Error::invalid(what.clone(), reason);
    if destination.is_empty() {
        return Err(invalid("it has no destination".to_owned()));
    }
    if reference.is_empty() {
        return Err(invalid("its source names no image".to_owned()));
    }
    let mut image = ImageMount {
        destination,
        reference,
        sub_path: None,
        snapshotter: None,
        passed_on: Vec::new(),
    };
    let options = match mount.get("options") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(options)) => options,
        Some(_) => return Err(invalid("its options are no list".to_owned())),
    };
    for option in options {
        let option =
            option.as_str().ok_or_else(|| invalid(format!("option {option} is no text")))?;
        match option.split_once('=').unwrap_or((option, "")) {
            ("ro" | "bind" | "rbind", "") => {}
            ("subpath", path) if !path.is_empty() => image.sub_path = Some(path.into()),
            ("snapshotter", name) if !name.is_empty() => image.snapshotter = Some(name.to_owned()),
            ("nosuid" | "nodev" | "noexec" | "private" | "rprivate" | "slave" | "rslave", "") => {
                image.passed_on.push(option.to_owned());
            }
            ("rw", "") => return Err(invalid("an image is read-only".to_owned())),
            _ => return Err(invalid(format!("option {option:?} is not known"))),
        }
    }
    Ok(image)
}

fn bind(image: &ImageMount, path: &Path) -> Result<Value, Error> {
    let path = path.to_str().ok_or_else(|| {
        Error::invalid(
            format!("image volume at {:?}", image.destination),
            format!("{} cannot be written as JSON", path.display()),
        )
    })?;
    let mut options = vec!["rbind", "ro"];
    options.extend(image.passed_on.iter().map(String::as_str));
    if !image
        .passed_on
        .iter()
        .any(|option| option.ends_with("private") || option.ends_with("slave"))
    {
        options.push("rprivate");
    }
    Ok(json!({ "type": "bind", "source": path, "options": options }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(options: &Value) -> Value {
        json!({"x-unknown": 1, "mounts": [
            {"destination": "/a", "type": "bind", "source": "/a"},
            {"destination": "/m", "type": "image", "source": "r/m:1", "options": options, "x": 2},
        ]})
    }

    #[test]
    fn a_volume_is_found_with_its_options_and_becomes_a_bind_mount() {
        let mut spec = spec(&json!(["ro", "subpath=a/b", "snapshotter=native", "nosuid"]));
        let found = find(&spec).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].reference, "r/m:1");
        assert_eq!(found[0].sub_path.as_deref(), Some(Path::new("a/b")));
        assert_eq!(found[0].snapshotter.as_deref(), Some("native"));
        replace(&mut spec, |image| Ok(Path::new("/run").join(&image.reference))).unwrap();
        assert_eq!(
            spec,
            json!({"x-unknown": 1, "mounts": [
                {"destination": "/a", "type": "bind", "source": "/a"},
                {"destination": "/m", "type": "bind", "source": "/run/r/m:1", "x": 2,
                 "options": ["rbind", "ro", "nosuid", "rprivate"]},
            ]})
        );
        assert!(find(&spec).unwrap().is_empty());
    }

    #[test]
    fn a_specification_without_volumes_is_not_touched() {
        for mut untouched in [json!({}), json!({"mounts": null}), json!([]), json!({"mounts": [1]})]
        {
            let before = untouched.clone();
            replace(&mut untouched, |_| unreachable!()).unwrap();
            assert_eq!(untouched, before);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        for (options, named) in [
            (json!(["rw"]), "read-only"),
            (json!(["subpath="]), "subpath="),
            (json!(["size=1"]), "size=1"),
            (json!([7]), "7"),
            (json!("ro"), "no list"),
        ] {
            let error = find(&spec(&options)).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }));
            let text = error.to_string();
            assert!(text.contains(named) && text.contains("\"/m\""), "{text}");
        }
        let nameless = json!({"mounts": [{"destination": "/m", "type": "image"}]});
        assert!(find(&nameless).is_err());
    }

    #[test]
    fn a_failure_leaves_the_specification_as_it_was() {
        let mut spec = spec(&json!([]));
        let before = spec.clone();
        replace(&mut spec, |_| Err(Error::invalid("x", "y"))).unwrap_err();
        assert_eq!(spec, before);
    }

    #[test]
    fn ids_are_mapped_as_the_other_binds_have_them() {
        let mut spec = spec(&json!(["ro"]));
        spec["mounts"][0]["uidMappings"] = json!([{"hostID": 5}]);
        replace(&mut spec, |_| Ok("/p".into())).unwrap();
        assert_eq!(spec["mounts"][1]["uidMappings"], json!([{"hostID": 5}]));
    }

    proptest! {
        #[test]
        fn no_options_make_it_panic(options in prop::collection::vec(".{0,12}", 0..5)) {
            let mut spec = spec(&json!(options));
            let _ = replace(&mut spec, |_| Ok("/p".into()));
        }
    }
}
