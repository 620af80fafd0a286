//! The events of a container, as containerd names them.

use std::path::Path;

use containerd_shim_protos::{
    events::task::{
        TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
        TaskOOM, TaskPaused, TaskResumed, TaskStart,
    },
    protobuf::MessageField,
};
use mooring::id::Id;

use super::{CreateRequest, Ended};
use crate::events::Events;

pub(super) fn created(events: &dyn Events, request: &CreateRequest, pid: u32) {
    let streams = &request.streams;
    let mut event = TaskCreate {
        container_id: request.id.to_string(),
        bundle: request.bundle.to_string_lossy().into_owned(),
        io: MessageField::some(TaskIO {
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            ..TaskIO::default()
        }),
        checkpoint: request.checkpoint.clone(),
        pid,
        ..TaskCreate::default()
    };
    event.rootfs.resize_with(request.rootfs.len(), Default::default);
    for (to, from) in event.rootfs.iter_mut().zip(&request.rootfs) {
        to.type_.clone_from(&from.kind);
        to.source.clone_from(&from.source);
        to.target = from
            .target
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default();
        to.options.clone_from(&from.options);
    }
    events.publish("/tasks/create", &event);
}

pub(super) fn started(events: &dyn Events, id: &Id, pid: u32) {
    let event = TaskStart { container_id: id.to_string(), pid, ..TaskStart::default() };
    events.publish("/tasks/start", &event);
}

/// `exec` is the process's own id; for the init it is the container's.
pub(super) fn exited(events: &dyn Events, id: &Id, exec: Option<&Id>, ended: &Ended) {
    let event = TaskExit {
        container_id: id.to_string(),
        id: exec.unwrap_or(id).to_string(),
        pid: ended.pid,
        exit_status: ended.status,
        exited_at: MessageField::some(ended.at.into()),
        ..TaskExit::default()
    };
    events.publish("/tasks/exit", &event);
}

pub(super) fn deleted(events: &dyn Events, id: &Id, ended: &Ended) {
    let event = TaskDelete {
        container_id: id.to_string(),
        pid: ended.pid,
        exit_status: ended.status,
        exited_at: MessageField::some(ended.at.into()),
        ..TaskDelete::default()
    };
    events.publish("/tasks/delete", &event);
}

pub(super) fn exec_added(events: &dyn Events, id: &Id, exec: &Id) {
    let event = TaskExecAdded {
        container_id: id.to_string(),
        exec_id: exec.to_string(),
        ..TaskExecAdded::default()
    };
    events.publish("/tasks/exec-added", &event);
}

pub(super) fn exec_started(events: &dyn Events, id: &Id, exec: &Id, pid: u32) {
    let event = TaskExecStarted {
        container_id: id.to_string(),
        exec_id: exec.to_string(),
        pid,
        ..TaskExecStarted::default()
    };
    events.publish("/tasks/exec-started", &event);
}

pub(super) fn paused(events: &dyn Events, id: &Id) {
    events.publish(
        "/tasks/paused",
        &TaskPaused { container_id: id.to_string(), ..TaskPaused::default() },
    );
}

pub(super) fn resumed(events: &dyn Events, id: &Id) {
    events.publish(
        "/tasks/resumed",
        &TaskResumed { container_id: id.to_string(), ..TaskResumed::default() },
    );
}

pub(super) fn checkpointed(events: &dyn Events, id: &Id, images: &Path) {
    let event = TaskCheckpointed {
        container_id: id.to_string(),
        checkpoint: images.to_string_lossy().into_owned(),
        ..TaskCheckpointed::default()
    };
    events.publish("/tasks/checkpointed", &event);
}

pub(super) fn oom(events: &dyn Events, id: &Id) {
    events.publish("/tasks/oom", &TaskOOM { container_id: id.to_string(), ..TaskOOM::default() });
}
