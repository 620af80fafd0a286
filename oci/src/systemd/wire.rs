//! Messages to systemd in D-Bus's encoding, as far as they need it: little endian, each value at a multiple of its size.

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Numbers(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Flag(_) => "b",
            Self::Number(_) => "t",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub name: &'static str,
    pub value: Value,
}

impl Property {
    pub fn new(name: &'static str, value: Value) -> Self {
        Self { name, value }
    }
}

/// The kind of message that a call is.
const CALL: u8 = 1;

/// Fields of a message's head.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
pub const MEMBER: u8 = 3;
const DESTINATION: u8 = 6;
pub const SIGNATURE: u8 = 8;

/// Values, one after another.
#[derive(Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, size: usize) {
        self.0.resize(self.0.len().next_multiple_of(size), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    /// Lengths of what is made here are far below what does not fit.
    fn length(&mut self, length: usize) {
        self.number(u32::try_from(length).unwrap_or(u32::MAX));
    }

    pub fn text(mut self, text: &str) -> Self {
        self.put_text(text);
        self
    }

    fn put_text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    pub fn flag(mut self, flag: bool) -> Self {
        self.number(u32::from(flag));
        self
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.put_text(text),
            Value::Flag(flag) => self.number(u32::from(*flag)),
            Value::Number(number) => {
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Numbers(all) => {
                self.length(4 * all.len());
                for one in all {
                    self.number(*one);
                }
            }
            Value::Bytes(bytes) => {
                self.length(bytes.len());
                self.0.extend(bytes);
            }
        }
    }

    /// An array of structures: its length does not count what aligns the first one.
    fn array(&mut self, fill: impl FnOnce(&mut Self)) {
        self.number(0);
        let at = self.0.len() - 4;
        self.align(8);
        let start = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// `a(sv)`
    pub fn properties(mut self, all: &[Property]) -> Self {
        self.array(|body| {
            for one in all {
                body.align(8);
                body.put_text(one.name);
                body.variant(&one.value);
            }
        });
        self
    }

    /// `a(sa(sv))` without any.
    pub fn no_units(mut self) -> Self {
        self.array(|_| {});
        self
    }
}

/// Where a call goes.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    /// Of its arguments.
    pub signature: &'a str,
}

pub fn call(serial: u32, method: &Method<'_>, body: &Body) -> Vec<u8> {
    let mut message = Body(vec![b'l', CALL, 0, 1]);
    message.length(body.0.len());
    message.number(serial);
    let fields = [
        (PATH, "o", method.path),
        (INTERFACE, "s", method.interface),
        (MEMBER, "s", method.member),
        (DESTINATION, "s", method.destination),
    ];
    message.array(|head| {
        for (code, signature, text) in fields {
            head.align(8);
            head.0.push(code);
            head.signature(signature);
            head.put_text(text);
        }
        if !method.signature.is_empty() {
            head.align(8);
            head.0.push(SIGNATURE);
            head.signature("g");
            head.signature(method.signature);
        }
    });
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

#[cfg(test)]
mod tests {
    use super::{
        super::message::{START, rest},
        *,
    };

    #[test]
    fn a_call_is_laid_out_as_the_specification_has_it() {
        let method =
            Method { destination: "d", path: "/", interface: "i", member: "M", signature: "sb" };
        let made = call(5, &method, &Body::default().text("x").flag(true));
        let wanted: &[u8] = b"l\x01\0\x01\x0c\0\0\0\x05\0\0\0\x48\0\0\0\
            \x01\x01o\0\x01\0\0\0/\0\0\0\0\0\0\0\
            \x02\x01s\0\x01\0\0\0i\0\0\0\0\0\0\0\
            \x03\x01s\0\x01\0\0\0M\0\0\0\0\0\0\0\
            \x06\x01s\0\x01\0\0\0d\0\0\0\0\0\0\0\
            \x08\x01g\0\x02sb\0\
            \x01\0\0\0x\0\0\0\x01\0\0\0";
        // The length of the fields ends with the last one.
        assert_eq!(made, wanted);
        assert_eq!(rest(made[..START].try_into().unwrap()).unwrap(), made.len() - START);
    }

    #[test]
    fn properties_are_variants() {
        let all = [
            Property::new("A", Value::Number(3)),
            Property::new("B", Value::Numbers(vec![9])),
            Property::new("C", Value::Bytes(vec![5])),
        ];
        let body = Body::default().properties(&all);
        let wanted: &[u8] = b"\x41\0\0\0\0\0\0\0\
            \x01\0\0\0A\0\x01t\0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
            \x01\0\0\0B\0\x02au\0\0\0\x04\0\0\0\x09\0\0\0\0\0\0\0\
            \x01\0\0\0C\0\x02ay\0\0\0\x01\0\0\0\x05";
        assert_eq!(body.0, wanted);
    }
}
