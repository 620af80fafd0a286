//! One plugin: a program that is started with a socket, or one that listens at a socket.
//!
//! It registers itself, is told the runtime's name and how long it may take (Configure), and answers which events it wants
//! to hear of.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt, unix::net::UnixStream as Pair},
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use protobuf::Message;
use tokio::{net::UnixStream, time::timeout};
use ttrpc::r#async::{Client, Server, transport::Socket};

use super::{
    Event, Settings,
    api::{AboutRequest, ConfigureRequest, ConfigureResponse, Empty, StateChangeEvent},
    error::{Error, Failure},
    mux::{self, Carrier},
    register::{Registered, serve},
};
use crate::process::{Group, Reaper};

const SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The descriptor that a program finds its socket at.
const SOCKET: i32 = 3;
/// How long a program may take to end by itself once its connection is closed.
const END: Duration = Duration::from_secs(1);
/// How much longer a plugin is told that it has: it shall be this side that says that the time is over.
const MOMENT: Duration = Duration::from_millis(100);
/// For programs that start others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A plugin that is connected, registered and configured.
pub(super) struct Plugin {
    /// Two digits and a name; plugins are called in this order.
    pub(super) index: String,
    pub(super) base: String,
    events: i32,
    timeout: Duration,
    connection: Connection,
    program: Option<Group>,
}

struct Connection {
    client: Client,
    /// As long as it is there the plugin is served.
    _server: Mutex<Server>,
    _carrier: Carrier,
}

impl Plugin {
    /// Starts the program, or connects to the socket, at `place`. `mark` is in the program's environment.
    pub(super) async fn connect(
        place: &Path,
        settings: &Settings,
        reaper: &Reaper,
        mark: (&str, &str),
    ) -> Result<Self, Error> {
        let named = place.file_name().unwrap_or(place.as_os_str()).to_string_lossy().into_owned();
        let failed = |method| {
            let plugin = named.clone();
            move |failure| Error { plugin, method, failure }
        };
        let looked = place.to_owned();
        let kind = tokio::task::spawn_blocking(move || fs::metadata(looked)).await;
        let kind = kind.unwrap_or_else(|error| Err(io::Error::other(error)));
        let is_socket = kind.map_err(|e| failed("start")(e.into()))?.file_type().is_socket();
        let limit = settings.registration();
        let (trunk, program, own_name) = if is_socket {
            let connected = timeout(limit, UnixStream::connect(place)).await;
            let connected = connected.map_err(|_| failed("connect")(Failure::Late(limit)))?;
            (connected.map_err(|e| failed("connect")(e.into()))?, None, None)
        } else {
            let (index, base) = parse(&named).map_err(failed("start"))?;
            let (trunk, program) = start(place, reaper, (&index, &base), mark)
                .map_err(|e| failed("start")(e.into()))?;
            (trunk, Some(program), Some((index, base)))
        };
        let mux::Connections { plugin, runtime, mut carrier } = mux::connections(trunk);
        let client = Client::new(Socket::new(plugin));
        let (server, registered) =
            serve(runtime).await.map_err(|error| failed("register")(garbled(error)))?;
        let registered = tokio::select! {
            registered = timeout(limit, registered) => match registered {
                Ok(Ok(registered)) => registered,
                Ok(Err(_)) => return Err(failed("register")(Failure::Closed)),
                Err(_) => return Err(failed("register")(Failure::Late(limit))),
            },
            () = carrier.ended() => return Err(failed("register")(Failure::Closed)),
        };
        let (index, base) = if let Some(own) = own_name {
            own
        } else {
            let Registered { name, index } = registered;
            parse(&format!("{index}-{name}")).map_err(failed("register"))?
        };
        let connection = Connection { client, _server: Mutex::new(server), _carrier: carrier };
        let timeout = settings.timeout;
        let mut it = Self { index, base, events: 0, timeout, connection, program };
        it.events = it.configure(settings, limit).await.map_err(|failure| Error {
            plugin: it.name(),
            method: "Configure",
            failure,
        })?;
        Ok(it)
    }

    /// As errors and logs call it.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    async fn configure(&self, settings: &Settings, limit: Duration) -> Result<i32, Failure> {
        let files = ["-", ""].map(|between| {
            let index = if between.is_empty() { "" } else { &self.index };
            settings.conf_dir.join(format!("{index}{between}{}.conf", self.base))
        });
        let read = tokio::task::spawn_blocking(move || configuration(&files)).await;
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config: read.unwrap_or_else(|error| Err(io::Error::other(error)))?,
            runtime_name: "mooring".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            registration_timeout: milliseconds(limit),
            request_timeout: milliseconds(self.timeout),
            ..ConfigureRequest::default()
        };
        let wanted = self.call::<ConfigureResponse>("Configure", &request).await?.events;
        let unknown = wanted & !Event::ALL;
        if unknown != 0 {
            return Err(Failure::Garbled(format!(
                "it wants events that there are not: {unknown:#x}"
            )));
        }
        Ok(if wanted == 0 { Event::ALL } else { wanted })
    }

    pub(super) fn wants(&self, event: Event) -> bool {
        self.events & event.bit() != 0
    }

    /// Calls the plugin, at most for its time.
    pub(super) async fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Failure> {
        let request = ttrpc::Request {
            service: SERVICE.into(),
            method: method.into(),
            // The plugin learns of it; who counts is below.
            timeout_nano: i64::try_from((self.timeout + MOMENT).as_nanos()).unwrap_or(i64::MAX),
            payload: request.write_to_bytes().map_err(garbled)?,
            ..ttrpc::Request::default()
        };
        let late = || Failure::Late(self.timeout);
        match timeout(self.timeout, self.connection.client.request(request)).await {
            Ok(Ok(answer)) => A::parse_from_bytes(&answer.payload).map_err(garbled),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(match status.code() {
                ttrpc::Code::UNIMPLEMENTED => Failure::Unknown,
                // What plugins in Rust say to a call that they have no method for.
                ttrpc::Code::NOT_FOUND if status.message.ends_with("is not supported") => {
                    Failure::Unknown
                }
                ttrpc::Code::DEADLINE_EXCEEDED => late(),
                _ => Failure::Says(status.message),
            }),
            Ok(Err(ttrpc::Error::Others(error))) => Err(Failure::Garbled(error)),
            Ok(Err(_)) => Err(Failure::Closed),
            Err(_) => Err(late()),
        }
    }

    /// Tells the plugin of an event to which it has nothing to answer. Those of before 2026 know but one call for all.
    pub(super) async fn tell(&self, event: Event, about: &AboutRequest) -> Result<(), Failure> {
        match self.call::<Empty>(event.method(), about).await {
            Err(Failure::Unknown) => {}
            told => return told.map(drop),
        }
        let change = StateChangeEvent {
            event: event as i32,
            pod: about.pod.clone(),
            container: about.container.clone(),
            ..StateChangeEvent::default()
        };
        match self.call::<Empty>("StateChange", &change).await {
            // It asked for all events, and has no use for this one.
            Err(Failure::Unknown) => Ok(()),
            told => told.map(drop),
        }
    }

    /// Closes the connection, and ends the program.
    pub(super) async fn end(self) {
        let Self { program, connection, .. } = self;
        drop(connection);
        if let Some(mut program) = program
            && timeout(END, program.ended()).await.is_err()
        {
            program.kill().await;
        }
    }
}

fn garbled(error: impl std::fmt::Display) -> Failure {
    Failure::Garbled(error.to_string())
}

/// Index and name in `NN-NAME`.
fn parse(name: &str) -> Result<(String, String), Failure> {
    let parts = name.split_once('-').filter(|(index, base)| {
        let is_index = index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit());
        let may = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        is_index && !base.is_empty() && base.bytes().all(may)
    });
    let (index, base) = parts.ok_or_else(|| Failure::Name(name.to_owned()))?;
    Ok((index.to_owned(), base.to_owned()))
}

/// What the node says to a plugin: the first of the files that is there.
fn configuration(files: &[std::path::PathBuf]) -> io::Result<String> {
    for file in files {
        match fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", file.display())));
            }
            text => return text,
        }
    }
    Ok(String::new())
}

fn start(
    program: &Path,
    reaper: &Reaper,
    (index, base): (&str, &str),
    (variable, value): (&str, &str),
) -> io::Result<(UnixStream, Group)> {
    let (ours, theirs) = Pair::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .env("NRI_PLUGIN_NAME", base)
        .env("NRI_PLUGIN_IDX", index)
        .env(variable, value)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let socket = FdMapping { parent_fd: OwnedFd::from(theirs), child_fd: SOCKET };
    command.fd_mappings(vec![socket]).map_err(io::Error::other)?;
    let (group, _) = Group::start(reaper, &mut command)?;
    Ok((UnixStream::from_std(ours)?, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_two_digits_and_what_it_is_called() {
        assert_eq!(parse("10-device-injector").unwrap(), ("10".into(), "device-injector".into()));
        for bad in ["logger", "1-logger", "100-logger", "1x-logger", "10-", "10-a b", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_file_that_is_there_is_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["10-x.conf", "x.conf"].map(|name| folder.path().join(name));
        assert_eq!(configuration(&files).unwrap(), "");
        fs::write(&files[1], "common").unwrap();
        assert_eq!(configuration(&files).unwrap(), "common");
        fs::write(&files[0], "own").unwrap();
        assert_eq!(configuration(&files).unwrap(), "own");
        fs::remove_file(&files[0]).unwrap();
        fs::create_dir(&files[0]).unwrap();
        assert!(configuration(&files).unwrap_err().to_string().contains("10-x.conf"));
    }
}
