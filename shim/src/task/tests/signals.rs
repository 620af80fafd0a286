//! What a container, an exec, a log program and a plugin start with: every signal at its default, none blocked.

use std::{fs, process::Command};

use super::stage::{Stage, dependency};
use crate::{detach, task::Streams};

/// What `/proc/PID/status` says of signals that are ignored or blocked.
const LOOK: &str = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
const CLEAN: &str = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";

#[tokio::test]
async fn every_child_starts_with_signals_as_the_kernel_has_them() {
    // As main does: whoever runs the tests may ignore some.
    detach::reset_signals();
    let stage = Stage::new("");
    let out = stage.folder.path().join("init");
    let file = |path: &std::path::Path| Streams {
        stdout: format!("file://{}", path.display()),
        ..Streams::default()
    };
    stage.write(&stage.spec(&format!("{LOOK}; exec sleep 1000")));
    stage.run(file(&out)).await;
    let exec = stage.folder.path().join("exec");
    stage.exec("exec", LOOK, file(&exec)).await.unwrap();
    assert_eq!(stage.wait("exec").await.status, 0);
    stage.tasks.delete(stage.id.as_str(), "exec").await.unwrap();
    assert_eq!(fs::read_to_string(&exec).unwrap(), CLEAN);
    stage.kill(9).await;
    stage.wait("").await;
    stage.delete().await;
    assert_eq!(fs::read_to_string(&out).unwrap(), CLEAN);
    stage.assert_clean();

    let program = stage.folder.path().join("logger");
    let script = format!(
        "#!{} sh\n{LOOK} >{}\n",
        dependency("busybox").canonicalize().unwrap().display(),
        stage.folder.path().join("log").display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    stage.write(&stage.spec("true"));
    stage
        .run(Streams { stdout: format!("binary://{}", program.display()), ..Streams::default() })
        .await;
    stage.wait("").await;
    stage.delete().await;
    assert_eq!(fs::read_to_string(stage.folder.path().join("log")).unwrap(), CLEAN);
    stage.assert_clean();

    // Plugins are run like this.
    let reaper = mooring::process::Reaper::start().unwrap();
    let mut plugin = Command::new("/bin/sh");
    plugin.args(["-c", LOOK]);
    let output = mooring::process::run(&reaper, &mut plugin, b"", None).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), CLEAN);
}
