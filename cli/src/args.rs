//! The command line: help, manual pages and completions come from here.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::span;

const EXAMPLES: &str = "\
Exit status:
  0  done, and there is nothing left to see to
  1  something wants a look, or could not be done
  2  could not look (not root, no such folder), or a wrong command line

Examples:
  mooring ls                     what is held on this node, and by whom
  mooring inspect ID             which step of a teardown hangs, and what it waits for
  mooring stop ID                a teardown by hand
  mooring doctor                 what belongs to no living sandbox, and what frees it
  mooring gc                     what was left behind
  mooring gc --yes               the same, freed";

const LS_EXAMPLES: &str = "\
Examples:
  mooring ls
  mooring ls -n k8s.io --no-trunc
  mooring ls -o json | jq -r '.[] | select(.state == \"left\") | .id'";

const INSPECT_EXAMPLES: &str = "\
What the shim says; where there is none, or it does not answer, what journal and records say.

Examples:
  mooring inspect 3f9c2                        the sandbox whose id begins so
  mooring inspect 3f9c2 --watch                its teardown, step by step, as it happens
  mooring inspect web -n default -o json | jq .teardown.current";

const STOP_EXAMPLES: &str = "\
The same teardown as containerd's StopSandbox: one that is under way is joined, one that failed goes on at its step. What
the shim does goes on when this command is interrupted. Where the shim is gone its journal is completed, as by \"mooring gc\".

Examples:
  mooring stop 3f9c2
  mooring stop --namespace k8s.io              all of one namespace of containerd
  mooring stop --all --timeout 30s             all of this node, each for half a minute at most
  mooring stop 3f9c2 --force                   a shim that hangs is killed, and its journal completed";

const DOCTOR_EXAMPLES: &str = "\
Nothing is changed. For what Mooring left \"mooring gc --yes\" frees it; for what others left the command is shown, and it
is yours to run. \"sure\": nobody can need it; \"likely\": nobody known does; \"unsure\": look first.

Exit status:
  0  nothing was found
  1  something was, or the set-up has a problem
  2  could not look

Examples:
  mooring doctor
  mooring doctor --quick          without containerd, and without walks of large trees
  mooring doctor -o json | jq -r '.findings[] | select(.sure == \"sure\") | .frees'";
const METRICS_EXAMPLES: &str = "\
Every shim is asked, those that are gone by what they have left. Counters of pods that are gone are kept by the node where
its configuration says KeepTotals, else by the server for as long as it runs.

Examples:
  mooring metrics                                    one scrape, in the text format of OpenMetrics
  mooring metrics --pods                             with each pod by itself, and its network's counters
  mooring metrics --listen 127.0.0.1:9753            for Prometheus, at /metrics";

const GC_EXAMPLES: &str = "\
Nothing is touched whose shim lives or that another process works on, nor where a journal or record is not understood.
What fails is named; the next run goes on from there.

Examples:
  mooring gc                          what would be freed, step by step
  mooring gc --yes --older-than 10m   what has not changed for ten minutes, freed
  mooring gc --yes --cni              and the CNI plugins remove what is of no pod
  mooring gc --yes --attachment ID    one attachment that \"mooring doctor\" found
  mooring gc --boot                   for a unit that runs at boot, before pods are started";

const INSTALL_EXAMPLES: &str = "\
The handler is a file of its own that containerd's configuration imports; the form is that of the configuration's version
(2, 3 or 4). A configuration that cannot be parsed is named with file and line, and nothing is changed. Nothing is
restarted without --restart.

Examples:
  mooring install --dry-run                  what would be changed
  mooring install                            copies this program and the shim beside it, and adds the handler
  mooring install --root /host               into another system's root, for example from a container";

const UNINSTALL_EXAMPLES: &str = "\
What was changed since it was made is named and kept.

Examples:
  mooring uninstall --dry-run
  mooring uninstall";

/// Looks at what Mooring holds on this node, frees what was left behind, and installs it.
#[derive(Debug, Parser)]
#[command(name = "mooring", version, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists every sandbox of this node, from journals and records; needs neither containerd nor shims.
    #[command(after_help = LS_EXAMPLES)]
    Ls(ListArgs),
    /// Shows all that is known of one sandbox: what it holds, and each step of its teardown.
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
    /// Takes sandboxes down by hand, step by step.
    #[command(after_help = STOP_EXAMPLES)]
    Stop(StopArgs),
    /// Looks for what belongs to no living sandbox, whoever left it, says which command frees it, and looks at the set-up.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Shows what shims have left that are gone, and frees it.
    #[command(after_help = GC_EXAMPLES)]
    Gc(GcArgs),
    /// Counts and times of this node's sandboxes, in the text format of OpenMetrics.
    #[command(after_help = METRICS_EXAMPLES)]
    Metrics(MetricsArgs),
    /// Installs the programs and containerd's runtime handler "mooring".
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(InstallArgs),
    /// Removes what "mooring install" has made, and nothing else.
    #[command(after_help = UNINSTALL_EXAMPLES)]
    Uninstall(UninstallArgs),
    /// Prints the version.
    Version,
    /// Writes the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Made where it is missing.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Prints the completion for a shell.
    #[command(hide = true)]
    Completion {
        /// Which shell.
        shell: Shell,
    },
}

/// Where state lies.
#[derive(Debug, Default, Arguments)]
pub struct RootArgs {
    /// Where journals and records lie; may be repeated. Else as the node's configuration says, and /var/lib/mooring.
    #[arg(long, value_name = "DIR")]
    pub state_root: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Default, Arguments)]
pub struct ListArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// Those of one namespace of containerd only.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How the list is written.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
    /// Ids in full.
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, Default, Arguments)]
pub struct InspectArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// The sandbox, or the beginning of its id.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Its namespace of containerd, where several have such a sandbox.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
    /// Follows the teardown until the sandbox is stopped: a line for each step, with -o json an object.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Default, Arguments)]
pub struct StopArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// The sandboxes, or the beginnings of their ids.
    #[arg(value_name = "ID", required_unless_present_any = ["all", "namespace"])]
    pub ids: Vec<String>,
    /// Every sandbox of this node.
    #[arg(short, long, conflicts_with_all = ["ids", "namespace"])]
    pub all: bool,
    /// Those of this namespace of containerd: all of them, where no id is given.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// How long each may take; without, to the end. The teardown goes on after it.
    #[arg(short, long, value_name = "DURATION", value_parser = span::parse)]
    pub timeout: Option<Duration>,
    /// Kills a shim that does not answer, or has not stopped its sandbox within the timeout (two minutes without one), and
    /// completes the teardown from the journal.
    #[arg(long)]
    pub force: bool,
}

/// Where containerd is.
#[derive(Debug, Default, Arguments)]
pub struct ContainerdArgs {
    /// containerd's configuration.
    #[arg(long, value_name = "PATH", default_value = "/etc/containerd/config.toml")]
    pub containerd_config: PathBuf,
    /// containerd's socket; else as its configuration says.
    #[arg(long, value_name = "PATH")]
    pub address: Option<PathBuf>,
}

#[derive(Debug, Default, Arguments)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// Looks only at what needs neither containerd nor walks of large trees.
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
    /// How the findings are written.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
}

#[derive(Debug, Default, Arguments)]
pub struct GcArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// Frees it; without, nothing is changed.
    #[arg(short, long)]
    pub yes: bool,
    /// Only what nobody has written to for so long, such as 10m, 12h or 2d.
    #[arg(long, value_name = "DURATION", value_parser = span::parse)]
    pub older_than: Option<Duration>,
    /// For boot: frees it, and says only what could not be freed.
    #[arg(long, conflicts_with_all = ["cni", "attachment", "output"])]
    pub boot: bool,
    /// Then tells the CNI plugins of Mooring's networks which attachments are valid, so that they remove what is of
    /// nobody; refused where another runtime shares the network. No pod is to be started meanwhile.
    #[arg(long)]
    pub cni: bool,
    /// Nothing but what CNI has of this container, which nobody knows any more, whoever attached it; may be repeated.
    #[arg(long, value_name = "CONTAINER", conflicts_with = "cni")]
    pub attachment: Vec<String>,
    #[command(flatten)]
    pub containerd: ContainerdArgs,
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub output: Output,
}

#[derive(Debug, Default, Arguments)]
pub struct MetricsArgs {
    #[command(flatten)]
    pub roots: RootArgs,
    /// Where pods' files and the node's totals lie; may be repeated. Else as the node's configuration says, and /run/mooring.
    #[arg(long, value_name = "DIR")]
    pub run_root: Vec<PathBuf>,
    /// Serves them over HTTP instead. Whoever can reach the address can read them.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// With labels for each pod (`sandbox_id`, `pod`, `namespace`).
    #[arg(long)]
    pub pods: bool,
}

/// Which system, and whether it is changed.
#[derive(Debug, Arguments)]
pub struct PlaceArgs {
    /// The folder that stands for /; nothing outside of it is changed.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Shows what would be done, and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Has the system's systemd restart containerd where something was changed; elsewhere says what to restart.
    #[arg(long)]
    pub restart: bool,
}

#[derive(Debug, Arguments)]
pub struct InstallArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Where the programs go, below the root; else they stay where a package has put them, or go to /usr/local/bin.
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Where the programs are; else beside this one.
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// containerd's configuration, below the root.
    #[arg(long, value_name = "PATH", default_value = "/etc/containerd/config.toml")]
    pub containerd_config: PathBuf,
}

#[derive(Debug, Arguments)]
pub struct UninstallArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Goes on although sandboxes are there.
    #[arg(long)]
    pub force: bool,
}
