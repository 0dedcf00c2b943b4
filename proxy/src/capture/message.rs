//! The rules as the kernel takes them: messages of nftables over netlink (pure).
//! Numbers are those of `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and
//! `linux/netfilter/nf_tables.h`; a rule is what `nft --debug=netlink` shows of its text.
//!
//! **Invariant:** a length fits its field: the longest is a set's, of some hundred ports.

use std::net::IpAddr;

use super::Block;
use super::rules::{Chain, Hook, PRIORITY, Rule, TABLE, Table};

/// One message of the transaction, and what it is about.
#[derive(Debug)]
pub struct Step {
    /// In the words of the text form.
    pub what: String,
    /// What a kernel must have for it.
    pub needs: &'static str,
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

const SUBSYSTEM: u16 = 10;
const FAMILY_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const NF_TABLES: &str = "module nf_tables";
/// A nested list's element.
const ELEMENT: u16 = 1;
/// Of an expression: its name, its data.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// Of data: a value, a verdict, a verdict's code.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const RETURN: i32 = -5;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const TCP: u8 = 6;
const HEADER_NETWORK: u32 = 1;
const HEADER_TRANSPORT: u32 = 2;
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
/// The kind of an address that is this host's own.
const RTN_LOCAL: u32 = 2;
const NAT_PROTO_SPECIFIED: u32 = 2;
const SET_ANONYMOUS_CONSTANT: u32 = 3;
/// What nft calls inet_service.
const TYPE_PORT: u32 = 13;
/// The kernel numbers anonymous sets itself.
const SET_NAME: &str = "__set%d";
const INTERFACE: [u8; 16] = *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The transaction; `None`: nothing is to be left.
pub fn steps(table: Option<&Table>) -> Vec<Step> {
    let mut steps = vec![new_table(), delete_table()];
    let Some(table) = table else { return steps };
    steps.push(new_table());
    let mut sets = 0;
    for chain in &table.chains {
        steps.push(new_chain(chain));
        for rule in &chain.rules {
            if let Rule::Ports(ports) = rule
                && ports.len() > 1
            {
                sets += 1;
                steps.push(new_set(rule, sets));
                steps.push(new_elements(rule, (sets, ports)));
            }
            steps.push(new_rule(chain, rule, sets));
        }
    }
    steps
}

/// All of it, as it is sent. Step `i` has sequence number `i + 1`, and is answered by it;
/// 0 is the batch itself.
pub fn encode(steps: &[Step]) -> Vec<u8> {
    let mut out = Vec::new();
    let subsystem = SUBSYSTEM.to_be_bytes();
    let batch = [0, 0, subsystem[0], subsystem[1]];
    message(&mut out, (BATCH_BEGIN, REQUEST, 0), (batch, &[]));
    let mut sequence = 0;
    for step in steps {
        sequence += 1;
        let kind = SUBSYSTEM << 8 | step.kind;
        let flags = REQUEST | ACKNOWLEDGE | step.flags;
        message(
            &mut out,
            (kind, flags, sequence),
            ([FAMILY_INET, 0, 0, 0], &step.body),
        );
    }
    message(&mut out, (BATCH_END, REQUEST, sequence + 1), (batch, &[]));
    out
}

fn message(
    out: &mut Vec<u8>,
    (kind, flags, sequence): (u16, u16, u32),
    (family, body): ([u8; 4], &[u8]),
) {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + family.len() + body.len()).unwrap_or(u32::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    out.extend(family);
    // Attributes are aligned already.
    out.extend(body);
}

/// Attributes, one behind the other.
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn nested(self, kind: u16, value: Self) -> Self {
        self.bytes(kind | NESTED, &value.0)
    }

    /// An expression of a rule.
    fn expression(self, name: &str, data: Self) -> Self {
        let expression = Self::default().text(NAME, name).nested(DATA, data);
        self.nested(ELEMENT, expression)
    }

    fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, Self::default().bytes(VALUE, value))
    }

    fn meta(self, key: u32) -> Self {
        let data = Self::default().number(1, REGISTER).number(2, key);
        self.expression("meta", data)
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        let data = Self::default()
            .number(1, REGISTER)
            .number(2, base)
            .number(3, offset)
            .number(4, length);
        self.expression("payload", data)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        let data = Self::default()
            .number(1, REGISTER)
            .number(2, operator)
            .value(3, value);
        self.expression("cmp", data)
    }

    fn tcp(self) -> Self {
        self.meta(META_L4PROTO).compare(EQUAL, &[TCP])
    }

    fn leave_alone(self) -> Self {
        let verdict = Self::default().bytes(CODE, &RETURN.to_be_bytes());
        let verdict = Self::default().nested(VERDICT, verdict);
        let data = Self::default()
            .number(1, REGISTER_VERDICT)
            .nested(2, verdict);
        self.expression("immediate", data)
    }
}

fn table_step(what: String, kind: u16, flags: u16) -> Step {
    Step {
        what,
        needs: NF_TABLES,
        kind,
        flags,
        body: Attributes::default().text(1, TABLE).number(2, 0).0,
    }
}

fn new_table() -> Step {
    table_step(format!("table inet {TABLE}"), NEW_TABLE, CREATE)
}

fn delete_table() -> Step {
    Step {
        body: Attributes::default().text(1, TABLE).0,
        ..table_step(format!("delete table inet {TABLE}"), DELETE_TABLE, 0)
    }
}

fn new_chain(chain: &Chain) -> Step {
    let hook = match chain.hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    };
    let hook = Attributes::default()
        .number(1, hook)
        .bytes(2, &PRIORITY.to_be_bytes());
    const ACCEPT: u32 = 1;
    let body = Attributes::default()
        .text(1, TABLE)
        .text(3, chain.name)
        .nested(4, hook)
        .number(5, ACCEPT)
        .text(7, "nat");
    Step {
        what: chain.hook.to_string(),
        needs: "NAT of family inet (modules nft_chain_nat and nf_nat)",
        kind: NEW_CHAIN,
        flags: CREATE,
        body: body.0,
    }
}

fn new_set(rule: &Rule, set: u32) -> Step {
    let body = Attributes::default()
        .text(1, TABLE)
        .text(2, SET_NAME)
        .number(3, SET_ANONYMOUS_CONSTANT)
        .number(4, TYPE_PORT)
        .number(5, 2)
        .number(10, set);
    Step {
        what: rule.to_string(),
        needs: "sets of nftables (module nf_tables)",
        kind: NEW_SET,
        flags: CREATE,
        body: body.0,
    }
}

fn new_elements(rule: &Rule, (set, ports): (u32, &[u16])) -> Step {
    let elements = ports.iter().fold(Attributes::default(), |list, port| {
        let key = Attributes::default().value(1, &port.to_be_bytes());
        list.nested(ELEMENT, key)
    });
    let body = Attributes::default()
        .text(1, TABLE)
        .text(2, SET_NAME)
        .nested(3, elements)
        .number(4, set);
    Step {
        kind: NEW_ELEMENTS,
        body: body.0,
        ..new_set(rule, set)
    }
}

/// `set`: the last one made.
fn new_rule(chain: &Chain, rule: &Rule, set: u32) -> Step {
    let nothing = Attributes::default();
    let (expressions, needs) = match rule {
        Rule::User(uid) => (
            nothing
                .meta(META_SKUID)
                .compare(EQUAL, &uid.to_ne_bytes())
                .leave_alone(),
            NF_TABLES,
        ),
        Rule::ToLoopback => (
            nothing
                .meta(META_OIFNAME)
                .compare(EQUAL, &INTERFACE)
                .leave_alone(),
            NF_TABLES,
        ),
        Rule::FromLoopback => (
            nothing
                .meta(META_IIFNAME)
                .compare(EQUAL, &INTERFACE)
                .leave_alone(),
            NF_TABLES,
        ),
        Rule::NotLocal => (not_local(nothing), "module nft_fib_inet"),
        Rule::Ports(ports) => (to_ports(nothing, ports, set), NF_TABLES),
        Rule::To(block) => (to_block(nothing, *block), NF_TABLES),
        Rule::Redirect(port) => (redirect(nothing, *port), "module nft_redir"),
    };
    let body = Attributes::default()
        .text(1, TABLE)
        .text(2, chain.name)
        .nested(4, expressions);
    Step {
        what: rule.to_string(),
        needs,
        kind: NEW_RULE,
        flags: CREATE | APPEND,
        body: body.0,
    }
}

fn not_local(rule: Attributes) -> Attributes {
    let fib = Attributes::default()
        .number(1, REGISTER)
        .number(2, FIB_ADDRTYPE)
        .number(3, FIB_DADDR);
    rule.expression("fib", fib)
        .compare(NOT_EQUAL, &RTN_LOCAL.to_ne_bytes())
        .leave_alone()
}

fn to_ports(rule: Attributes, ports: &[u16], set: u32) -> Attributes {
    let rule = rule.tcp().payload(HEADER_TRANSPORT, 2, 2);
    let rule = match ports {
        [port] => rule.compare(EQUAL, &port.to_be_bytes()),
        _ => {
            let lookup = Attributes::default()
                .text(1, SET_NAME)
                .number(2, REGISTER)
                .number(4, set);
            rule.expression("lookup", lookup)
        }
    };
    rule.leave_alone()
}

fn to_block(rule: Attributes, block: Block) -> Attributes {
    let (protocol, offset, address) = match block.address {
        IpAddr::V4(address) => (NFPROTO_IPV4, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (NFPROTO_IPV6, 24, address.octets().to_vec()),
    };
    let length = u32::try_from(address.len()).unwrap_or(u32::MAX);
    let mask = mask(block.prefix, address.len());
    let network: Vec<u8> = address.iter().zip(&mask).map(|(a, m)| a & m).collect();
    let rule =
        rule.meta(META_NFPROTO)
            .compare(EQUAL, &[protocol])
            .payload(HEADER_NETWORK, offset, length);
    let whole = usize::from(block.prefix) == 8 * address.len();
    let rule = if whole {
        rule
    } else {
        let masked = Attributes::default()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, length)
            .value(4, &mask)
            .value(5, &vec![0; address.len()]);
        rule.expression("bitwise", masked)
    };
    rule.compare(EQUAL, &network).leave_alone()
}

/// So many bits, from the first.
fn mask(prefix: u8, bytes: usize) -> Vec<u8> {
    let bits = (0..bytes).map(|byte| usize::from(prefix).saturating_sub(8 * byte).min(8));
    bits.map(|bits| (0xff00_u16 >> bits) as u8).collect()
}

fn redirect(rule: Attributes, port: u16) -> Attributes {
    let immediate = Attributes::default()
        .number(1, REGISTER)
        .value(2, &port.to_be_bytes());
    let redirect = Attributes::default()
        .number(1, REGISTER)
        .number(3, NAT_PROTO_SPECIFIED);
    rule.tcp()
        .expression("immediate", immediate)
        .expression("redir", redirect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_bits() {
        for (prefix, bytes, expected) in [
            (0, 4, vec![0, 0, 0, 0]),
            (8, 4, vec![255, 0, 0, 0]),
            (12, 4, vec![255, 240, 0, 0]),
            (31, 4, vec![255, 255, 255, 254]),
            (32, 4, vec![255; 4]),
            (7, 2, vec![254, 0]),
        ] {
            assert_eq!(mask(prefix, bytes), expected, "{prefix}");
        }
    }

    #[test]
    fn attributes_are_aligned_and_say_their_length() {
        let one = Attributes::default().text(1, "weft").0;
        assert_eq!(one.len(), 12);
        assert_eq!(
            one[..4],
            [9_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat()
        );
        let sent = encode(&steps(None));
        let mut rest = sent.as_slice();
        let mut sequences = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            sequences.push(u32::from_ne_bytes([after[4], after[5], after[6], after[7]]));
            rest = &rest[u32::from_ne_bytes(*length) as usize..];
        }
        assert_eq!(sequences, [0, 1, 2, 3]);
    }
}
