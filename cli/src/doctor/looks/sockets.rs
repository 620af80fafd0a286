//! Sockets of shims that nobody serves.

use std::{fs, os::unix::fs::FileTypeExt};

use mooring::{sandbox::survey::Hands, sys::socket};

use super::Look;
use crate::doctor::{
    finding::{Finding, Sure, word},
    world::World,
};

pub struct Sockets;

impl Look for Sockets {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn findings(&self, world: &World) -> Vec<Finding> {
        let entries = fs::read_dir(&world.places.sockets).into_iter().flatten().flatten();
        let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
        let dead = sockets.map(|entry| entry.path()).filter(|path| !socket::serves(path));
        dead.map(|path| {
            let finding = Finding::new(self.name(), path.display().to_string());
            let modified = fs::metadata(&path).and_then(|about| about.modified()).ok();
            let finding = finding.since(modified, world.now);
            let left = world.found.iter().find(|found| {
                let of_it =
                    found.shim.as_ref().and_then(|shim| shim.socket.as_ref()) == Some(&path);
                found.hands == Hands::Nobody && of_it
            });
            match left {
                Some(found) => finding.ours(format!("{}/{}", found.namespace, found.id)),
                None => finding
                    .because(Sure::Likely, "nobody serves it")
                    .freed_by(format!("rm {}", word(&path))),
            }
        })
        .collect()
    }
}
