//! An NRI plugin that does what it is told, for tests of the runtime's side.
//!
//! Started as `FOLDER/NN-NAME`. What it is to do is in `FOLDER/NN-NAME.json`, what it is called with goes as a line of JSON
//! into `FOLDER/log`. Where nobody gives it a socket it listens at `FOLDER/NN-NAME.sock`. It speaks the protocol by itself, so that it understands no mistake of Mooring's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions, ServiceDescriptor};
use serde_json::{Value, json};

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nri.bin"));
const PACKAGE: &str = "nri.pkg.api.v1alpha1";
/// The connections of the socket.
const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
/// What is in a frame of ttrpc.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

fn main() -> Result<()> {
    let path = PathBuf::from(std::env::args_os().next().context("no name")?);
    let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
    let folder = path.parent().context("no folder")?.to_owned();
    let script = fs::read(folder.join(format!("{name}.json"))).context("no script")?;
    let pool = DescriptorPool::decode(DESCRIPTORS)?;
    let service = pool.get_service_by_name(&format!("{PACKAGE}.Plugin")).context("no service")?;
    let script: Value = serde_json::from_slice(&script)?;
    let on = |socket| Plugin {
        name: name.clone(),
        folder: folder.clone(),
        socket,
        script: script.clone(),
        service: service.clone(),
    };
    if let Ok(number) = std::env::var("NRI_PLUGIN_SOCKET") {
        // SAFETY: whoever starts a plugin gives it this descriptor, and nobody else in this process knows of it.
        let socket = unsafe { UnixStream::from_raw_fd(number.parse()?) };
        return on(socket).work(&pool);
    }
    let listener = UnixListener::bind(folder.join(format!("{name}.sock"))).context("listen")?;
    for socket in listener.incoming() {
        let (plugin, pool) = (on(socket?), pool.clone());
        std::thread::spawn(move || {
            let name = plugin.name.clone();
            plugin.work(&pool).unwrap_or_else(|error| eprintln!("{name}: {error:#}"));
        });
    }
    Ok(())
}

struct Plugin {
    name: String,
    folder: PathBuf,
    socket: UnixStream,
    /// `events`, `answers`, `fails` and `hangs` by call, `silent`, `stubborn`.
    script: Value,
    service: ServiceDescriptor,
}

impl Plugin {
    fn work(mut self, pool: &DescriptorPool) -> Result<()> {
        if self.script["silent"] == true {
            hang();
        }
        self.register(pool)?;
        self.serve()
    }

    fn register(&mut self, pool: &DescriptorPool) -> Result<()> {
        let kind = pool.get_message_by_name(&format!("{PACKAGE}.RegisterPluginRequest"));
        let mut request = DynamicMessage::new(kind.context("no message")?);
        // One that listens calls itself what it likes.
        let own = self.name.split_once('-').context("no index")?;
        for (field, name, own) in
            [("plugin_name", "NRI_PLUGIN_NAME", own.1), ("plugin_idx", "NRI_PLUGIN_IDX", own.0)]
        {
            let value = std::env::var(name).unwrap_or_else(|_| own.to_owned());
            request.set_field_by_name(field, prost_reflect::Value::String(value));
        }
        let request = Request {
            service: format!("{PACKAGE}.Runtime"),
            method: "RegisterPlugin".into(),
            payload: request.encode_to_vec(),
        };
        self.send(RUNTIME, 1, REQUEST, &request.encode_to_vec())
    }

    /// Answers until the connection ends.
    fn serve(&mut self) -> Result<()> {
        let mut buffers: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        loop {
            let mut header = [0; 8];
            if self.socket.read_exact(&mut header).is_err() {
                return if self.script["stubborn"] == true { hang() } else { Ok(()) };
            }
            let connection = number(&header).context("no header")?;
            let length = header.get(4..).and_then(number).context("no header")?;
            let mut piece = vec![0; length as usize];
            self.socket.read_exact(&mut piece)?;
            let buffer = buffers.entry(connection).or_default();
            buffer.extend(piece);
            while let Some((stream, kind, message)) = frame(buffer) {
                match (connection, kind) {
                    (PLUGIN, REQUEST) => self.answer(stream, &Request::decode(&*message)?)?,
                    // That the registration was heard.
                    (RUNTIME, RESPONSE) => {
                        if let Some(status) = Response::decode(&*message)?.status
                            && status.code != 0
                        {
                            bail!("{}", status.message);
                        }
                    }
                    _ => bail!("a frame of kind {kind} on connection {connection}"),
                }
            }
        }
    }

    fn answer(&mut self, stream: u32, request: &Request) -> Result<()> {
        let call = request.method.as_str();
        let known = self.service.methods().find(|method| method.name() == call);
        let method = known.with_context(|| format!("NRI has no call {call}"))?;
        let about = DynamicMessage::decode(method.input(), &*request.payload)?;
        self.log(call, &about)?;
        if self.script["hangs"] == call {
            hang();
        }
        let mut response = Response { status: Some(Status::default()), payload: Vec::new() };
        if let Some(reason) = self.script["fails"].get(call) {
            let message = reason.as_str().unwrap_or_default().to_owned();
            response.status = Some(Status { code: 2, message });
        } else {
            let mut answer = self.script["answers"].get(call).cloned().unwrap_or(json!({}));
            if call == "Configure" && answer == json!({}) {
                answer = json!({"events": self.script["events"].as_i64().unwrap_or(0)});
            }
            response.payload =
                DynamicMessage::deserialize(method.output(), answer)?.encode_to_vec();
        }
        self.send(PLUGIN, stream, RESPONSE, &response.encode_to_vec())
    }

    fn log(&self, call: &str, about: &DynamicMessage) -> Result<()> {
        let options =
            SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
        let request = about.serialize_with_options(serde_json::value::Serializer, &options)?;
        let line = json!({"plugin": self.name, "call": call, "request": request});
        let file = self.folder.join("log");
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        Ok(file.write_all(format!("{line}\n").as_bytes())?)
    }

    fn send(&mut self, connection: u32, stream: u32, kind: u8, message: &[u8]) -> Result<()> {
        let mut frame = Vec::new();
        frame.extend(u32::try_from(message.len())?.to_be_bytes());
        frame.extend(stream.to_be_bytes());
        frame.extend([kind, 0]);
        frame.extend(message);
        let mut piece = Vec::new();
        piece.extend(connection.to_be_bytes());
        piece.extend(u32::try_from(frame.len())?.to_be_bytes());
        piece.extend(frame);
        Ok(self.socket.write_all(&piece)?)
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Takes a whole frame of ttrpc: its stream, its kind, its message.
fn frame(buffer: &mut Vec<u8>) -> Option<(u32, u8, Vec<u8>)> {
    let (length, stream) = (number(buffer)?, number(buffer.get(4..)?)?);
    let kind = *buffer.get(8)?;
    let message = buffer.get(10..)?.get(..length as usize)?.to_vec();
    buffer.drain(..10 + message.len());
    Some((stream, kind, message))
}

/// The number that bytes begin with.
fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}
