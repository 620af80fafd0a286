//! The door through which tasks come into a sandbox: from the first stop on it is closed.

use tokio::sync::watch;

#[derive(Clone, Copy, Default)]
struct Inside {
    closed: bool,
    entering: usize,
}

/// Admits creations until it is closed, and lets the teardown wait for those under way.
#[derive(Default)]
pub(super) struct Door {
    inside: watch::Sender<Inside>,
}

/// Held while a task is being created.
pub struct Admitted {
    inside: watch::Sender<Inside>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.inside.send_modify(|inside| inside.entering -= 1);
    }
}

impl Door {
    pub(super) fn admit(&self) -> Option<Admitted> {
        let open = self.inside.send_if_modified(|inside| {
            inside.entering += usize::from(!inside.closed);
            !inside.closed
        });
        open.then(|| Admitted { inside: self.inside.clone() })
    }

    pub(super) fn close(&self) {
        self.inside.send_modify(|inside| inside.closed = true);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inside.borrow().closed
    }

    /// Waits until no creation is under way.
    pub(super) async fn quiet(&self) {
        // Fails only when the sender is gone, and this is the sender.
        let _ = self.inside.subscribe().wait_for(|inside| inside.entering == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_closed_door_waits_for_those_inside_and_admits_nobody() {
        let door = Door::default();
        let guest = door.admit().unwrap();
        door.close();
        assert!(door.admit().is_none());
        let second = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(second, door.quiet()).await.is_err());
        drop(guest);
        tokio::time::timeout(second, door.quiet()).await.unwrap();
    }
}
