//! What the engine costs beside the runtime alone. Prints; `cargo test -- --ignored --nocapture task::tests::speed`.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::stage::Stage;

const ROUNDS: usize = 30;

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

async fn runc(stage: &Stage, arguments: &[&str]) -> Duration {
    let reaper = mooring::process::Reaper::start().unwrap();
    let begun = Instant::now();
    let mut command = Command::new(&stage.settings.binary);
    command.arg("--root").arg(&stage.settings.root).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut exited, _) = reaper.spawn(&mut command).unwrap();
    assert_eq!(exited.wait().await.status, 0, "{arguments:?}");
    begun.elapsed()
}

#[tokio::test]
#[ignore = "a measurement"]
async fn the_engine_beside_the_runtime_alone() {
    let names = ["create", "start", "kill and exit", "delete"];
    let (mut ours, mut alone) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
    for _ in 0..ROUNDS {
        let stage = Stage::new("exec sleep 1000");
        let id = stage.id.as_str();
        let begun = Instant::now();
        stage.tasks.create(stage.request()).await.unwrap();
        ours[0].push(begun.elapsed());
        let begun = Instant::now();
        stage.tasks.start(id, "").await.unwrap();
        ours[1].push(begun.elapsed());
        let begun = Instant::now();
        stage.kill(9).await;
        stage.wait("").await;
        ours[2].push(begun.elapsed());
        let begun = Instant::now();
        stage.delete().await;
        ours[3].push(begun.elapsed());
        stage.assert_clean();

        let stage = Stage::new("exec sleep 1000");
        let (id, bundle) = (stage.id.as_str(), stage.bundle());
        let bundle = bundle.to_str().unwrap();
        let reaper = mooring::process::Reaper::start().unwrap();
        let expecting = reaper.expecting();
        let pid = stage.folder.path().join("pid");
        let create = ["create", "--bundle", bundle, "--pid-file", pid.to_str().unwrap(), id];
        alone[0].push(runc(&stage, &create).await);
        let mut init = expecting.adopt(fs::read_to_string(&pid).unwrap().parse().unwrap());
        drop(expecting);
        alone[1].push(runc(&stage, &["start", id]).await);
        let begun = Instant::now();
        runc(&stage, &["kill", id, "9"]).await;
        init.wait().await;
        alone[2].push(begun.elapsed());
        alone[3].push(runc(&stage, &["delete", id]).await);
    }
    for ((name, ours), alone) in names.iter().zip(&mut ours).zip(&mut alone) {
        println!(
            "{name:14} engine {:6.2} ms   runtime alone {:6.2} ms",
            median(ours),
            median(alone)
        );
    }
}
