//! The events that wait for containerd.
//!
//! While containerd is away they wait, and a shim must not grow for as long as that takes. Of a container that is
//! killed for want of memory over and over, one `/tasks/oom` waits and stands for all since the container's last other
//! event. Exits always wait: whoever misses one waits for ever. Of all other events at most [`OTHERS`] wait; beyond
//! that the oldest of them is dropped.

use std::{collections::VecDeque, sync::Arc};

use containerd_shim_protos::shim::events::ForwardRequest;

const OOM: &str = "/tasks/oom";
const EXIT: &str = "/tasks/exit";
/// How many events that are no exits wait at most.
const OTHERS: usize = 1024;
/// How many places an empty queue keeps.
const SPARE: usize = 4;

#[derive(Default)]
pub(super) struct Queue {
    events: VecDeque<Arc<ForwardRequest>>,
    /// How many of them are no exits.
    others: usize,
    dropped: usize,
}

fn topic(request: &ForwardRequest) -> &str {
    request.envelope.as_ref().map_or("", |envelope| &envelope.topic)
}

fn value(request: &ForwardRequest) -> &[u8] {
    let event = request.envelope.as_ref().and_then(|envelope| envelope.event.as_ref());
    event.map_or(&[], |event| &event.value)
}

impl Queue {
    /// Adds an event. Answers whether one was dropped for it, the first one since the queue was empty.
    pub fn push(&mut self, request: ForwardRequest) -> bool {
        if topic(&request) == OOM && self.waits(&request) {
            return false;
        }
        self.others += usize::from(topic(&request) != EXIT);
        self.events.push_back(Arc::new(request));
        self.others > OTHERS && self.drop_one()
    }

    /// Whether the same is waiting as the last event of its container. The first event is being sent and does not
    /// wait.
    fn waits(&self, oom: &ForwardRequest) -> bool {
        // An OOM event is the container's id and nothing else; every other event of a task begins with that field.
        let container = value(oom);
        let last = self.events.iter().skip(1).rev().find(|one| value(one).starts_with(container));
        last.is_some_and(|last| topic(last) == OOM)
    }

    /// Drops the oldest event that is no exit and not being sent.
    fn drop_one(&mut self) -> bool {
        let oldest = self.events.iter().skip(1).position(|one| topic(one) != EXIT);
        if oldest.and_then(|at| self.events.remove(at + 1)).is_none() {
            return false;
        }
        self.others -= 1;
        self.dropped += 1;
        self.dropped == 1
    }

    pub fn front(&self) -> Option<&Arc<ForwardRequest>> {
        self.events.front()
    }

    /// Removes the first event. Answers how many have been dropped since the queue was empty, once it is.
    pub fn pop(&mut self) -> Option<usize> {
        let first = self.events.pop_front()?;
        self.others -= usize::from(topic(&first) != EXIT);
        if !self.events.is_empty() {
            return None;
        }
        self.events.shrink_to(SPARE);
        Some(std::mem::take(&mut self.dropped)).filter(|dropped| *dropped > 0)
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::envelope, *};
    use containerd_shim_protos::{
        events::task::{TaskExit, TaskOOM, TaskStart},
        protobuf::MessageDyn,
    };

    fn request(topic: &'static str, event: &dyn MessageDyn) -> ForwardRequest {
        envelope("k8s.io", topic, event).unwrap()
    }

    fn oom(container: &str) -> ForwardRequest {
        request(OOM, &TaskOOM { container_id: container.into(), ..TaskOOM::default() })
    }

    fn exit(container: &str, exec: usize) -> ForwardRequest {
        let id = exec.to_string();
        let event = TaskExit { container_id: container.into(), id, ..TaskExit::default() };
        request(EXIT, &event)
    }

    fn start(container: &str) -> ForwardRequest {
        let event = TaskStart { container_id: container.into(), pid: 1, ..TaskStart::default() };
        request("/tasks/start", &event)
    }

    fn topics(queue: &Queue) -> Vec<&str> {
        queue.events.iter().map(|one| topic(one)).collect()
    }

    #[test]
    fn one_oom_event_of_a_container_stands_for_all() {
        let mut queue = Queue::default();
        queue.push(start("a"));
        for _ in 0..10_000 {
            queue.push(oom("a"));
            queue.push(oom("ab"));
        }
        assert_eq!(queue.len(), 3);
        queue.push(exit("a", 0));
        queue.push(start("a"));
        queue.push(oom("a"));
        queue.push(oom("ab"));
        queue.push(oom("a"));
        let all = ["/tasks/start", OOM, OOM, EXIT, "/tasks/start", OOM];
        assert_eq!(topics(&queue), all, "one before its exit and one after");
    }

    #[test]
    fn an_oom_event_that_is_being_sent_stands_for_none_after_it() {
        let mut queue = Queue::default();
        for _ in 0..3 {
            queue.push(oom("a"));
        }
        assert_eq!(topics(&queue), [OOM, OOM]);
    }

    #[test]
    fn no_exit_is_dropped_and_everything_else_is_bounded() {
        let mut queue = Queue::default();
        let mut warnings = 0;
        for exec in 0..10_000 {
            warnings += usize::from(queue.push(start("a")));
            warnings += usize::from(queue.push(exit("a", exec)));
        }
        assert_eq!(warnings, 1, "it is said once");
        assert_eq!(queue.len(), 10_000 + OTHERS);
        let first = queue.front().cloned().unwrap();
        assert_eq!(topic(&first), "/tasks/start", "what is being sent stays first");
        let (mut exits, mut dropped) = (0, None);
        while let Some(front) = queue.front().cloned() {
            if topic(&front) == EXIT {
                assert_eq!(value(&front), value(&exit("a", exits)), "in order");
                exits += 1;
            }
            dropped = queue.pop();
        }
        assert_eq!((exits, dropped), (10_000, Some(10_000 - OTHERS)));
        queue.push(start("a"));
        assert_eq!(queue.pop(), None, "it is counted anew");
    }
}
