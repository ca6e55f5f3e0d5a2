"""Turn a suite's environment into Cedar entities: what the owner's own data says about people, places, files.

For: the policies, which compare a call's arguments with these facts ("is this account one that the owner has
paid before?"). Every function below explains where its facts come from and why they may be trusted.

Refuses to: look at tasks, prompts or attacks. The environment is read as its owner left it, before anything
was planted, which is what a deployment has when its facts are gathered by a job of its own and never by the
agent. What only arrives (incoming mail, incoming payments, invitations to edit) counts for little or nothing,
because a stranger can send it; what the owner did (paid, wrote, shared, attended) counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]

_IBAN = re.compile(r"\b[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}\b")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
# A link as people type it in chat; the punctuation after it belongs to the sentence.
_LINK = re.compile(r"www\.[\w-]+(?:\.[\w-]+)+(?:/[\w/-]*\w)?")
_CAPITALISED = re.compile(r"\b[A-Z][A-Za-z]+\b")

# Every suite has its assistant, the systems that own its tools, and one entity with the facts.
_SYSTEMS = "entity Mcp;\n"


@dataclass(frozen=True)
class Facts:
    """The entity types of a suite as schema text, and its entities in Cedar's JSON form."""

    declarations: str
    entities: list[JsonObject]


def gather(suite: str, environment: JsonObject, principal: str, systems: Iterable[str], declared: JsonObject) -> Facts:
    """The facts of one suite; `declared` is what `suites.toml` states beside the environment."""
    builders = {"banking": _banking, "slack": _slack, "travel": _travel, "workspace": _workspace}
    if suite not in builders:
        raise ValueError(f"no facts are described for the suite {suite!r}; known: {', '.join(sorted(builders))}")
    declarations, attribute, holder = builders[suite](environment, declared)
    agent = _entity(principal, {attribute: {"__entity": holder[0]["uid"]}})
    return Facts(declarations + _SYSTEMS, [agent, *holder, *(_entity(system, {}) for system in systems)])


def uid(text: str) -> JsonObject:
    """`Type::"id"` as Cedar's JSON uid."""
    kind, separator, rest = text.partition('::"')
    if not separator or not rest.endswith('"'):
        raise ValueError(f"not an entity uid: {text!r}")
    return {"type": kind, "id": rest[:-1]}


def _entity(name: str, attributes: JsonObject, tags: JsonObject | None = None) -> JsonObject:
    entity: JsonObject = {"uid": uid(name), "attrs": attributes, "parents": []}
    if tags is not None:
        entity["tags"] = tags
    return entity


def _sorted(values: Iterable[Any]) -> list[Any]:
    return sorted(set(values))


def _decimal(value: float) -> JsonObject:
    return {"__extn": {"fn": "decimal", "arg": f"{value:.2f}"}}


# --- banking -------------------------------------------------------------------------------------------------

_BANKING = """\
entity Agent = { owner: User };
entity User = {
    payees: Set<String>,
    payee_names: Set<String>,
    billers: Set<String>,
    recurring_payments: Set<Long>,
    single_payments: Set<Long>,
    files: Set<String>,
};
"""


def _banking(environment: JsonObject, _declared: JsonObject) -> tuple[str, str, list[JsonObject]]:
    """Whom the owner pays.

    A payee is an account the owner has sent money to or scheduled money for. Money that came in makes nobody a
    payee: a stranger can send a cent. A payee may be named instead of numbered; the names are the capitalised
    words in the subjects of the owner's own payments. A biller is an account printed in the owner's own files.
    """
    account = environment["bank_account"]
    own = {"me", account["iban"]}
    scheduled = account["scheduled_transactions"]
    paid = [entry for entry in [*account["transactions"], *scheduled] if entry["sender"] in own]
    files = environment["filesystem"]["files"]
    attributes = {
        "payees": _sorted(entry["recipient"] for entry in paid),
        "payee_names": _sorted(word for entry in paid for word in _CAPITALISED.findall(entry["subject"])),
        "billers": _sorted(iban for text in files.values() for iban in _IBAN.findall(text)),
        "recurring_payments": _sorted(entry["id"] for entry in scheduled if entry["recurring"]),
        "single_payments": _sorted(entry["id"] for entry in scheduled if not entry["recurring"]),
        "files": _sorted(files),
    }
    return _BANKING, "owner", [_entity('User::"owner"', attributes)]


# --- slack ---------------------------------------------------------------------------------------------------

_SLACK = """\
entity Agent = { team: Team };
entity Team = {
    members: Set<String>,
    channels: Set<String>,
    linked_sites: Set<String>,
    newcomers: Set<{ user: String, email: String }>,
    newcomer_names: Set<String>,
    own_sites: Set<String>,
};
"""


def _slack(environment: JsonObject, declared: JsonObject) -> tuple[str, str, list[JsonObject]]:
    """Who is in the team, and which web pages its members pointed at.

    A linked site is one that a member wrote into a message. A newcomer is a person whose e-mail address stands
    on a linked page and who is not a member: a member introduced that page. The user name is the address before
    the @ with a capital letter, which is how the team writes its names.
    """
    slack = environment["slack"]
    members = set(slack["users"])
    inboxes = [*slack["channel_inbox"].values(), *slack["user_inbox"].values()]
    messages = [message for inbox in inboxes for message in inbox if message["sender"] in members]
    linked = _sorted(link for message in messages for link in _LINK.findall(message["body"]))
    pages: Mapping[str, str] = environment["web"]["web_content"]
    addresses = _sorted(address for site in linked for address in _ADDRESS.findall(pages.get(site, "")))
    people = [{"user": address.split("@")[0].capitalize(), "email": address} for address in addresses]
    newcomers = [person for person in people if person["user"] not in members]
    attributes = {
        "members": _sorted(members),
        "channels": _sorted(slack["channels"]),
        "linked_sites": linked,
        "newcomers": newcomers,
        "newcomer_names": _sorted(person["user"] for person in newcomers),
        "own_sites": _sorted(declared["own_sites"]),
    }
    return _SLACK, "team", [_entity('Team::"team"', attributes)]


# --- travel --------------------------------------------------------------------------------------------------

_TRAVEL = """\
entity Agent = { owner: User };
entity User = {
    family: Set<String>,
    place_addresses: Set<String>,
    top_price: HotelPrices,
};
entity HotelPrices tags decimal;
"""


def _travel(environment: JsonObject, declared: JsonObject) -> tuple[str, str, list[JsonObject]]:
    """What the catalogue offers, at what price and address.

    The catalogue's names, addresses and prices come from the booking system. Its reviews are written by
    strangers and nothing is read from them. A hotel's tag is the highest price it may charge for a night.
    """
    hotels = environment["hotels"]["hotel_list"]
    places = [*hotels, *environment["restaurants"]["restaurant_list"]]
    prices = _entity('HotelPrices::"catalogue"', {}, {hotel["name"]: _decimal(hotel["price_max"]) for hotel in hotels})
    attributes = {
        "family": _sorted(declared["family"]),
        "place_addresses": _sorted(place["address"] for place in places),
        "top_price": {"__entity": prices["uid"]},
    }
    return _TRAVEL, "owner", [_entity('User::"owner"', attributes), prices]


# --- workspace -----------------------------------------------------------------------------------------------

_WORKSPACE = """\
entity Agent = { owner: User };
entity User = {
    correspondents: Set<String>,
    invitees: Set<String>,
    collaborators: Set<String>,
    events: Set<String>,
    own_events: Set<String>,
    attachable: Set<{ type: String, file_id: String }>,
    drive: Drive,
};
entity Drive tags { owned: Bool, company: Bool, writable: Bool };
"""


def _workspace(environment: JsonObject, _declared: JsonObject) -> tuple[str, str, list[JsonObject]]:
    """Whom the owner deals with, and whose each file and meeting is.

    Correspondents are the people the owner has written to or given one of the owner's files to; senders of
    incoming mail are not. Invitees are the correspondents, the people in the owner's confirmed meetings, and the
    owner. Collaborators are the people the owner gave a file to, and those who let the owner edit one of theirs.
    The owner's own events are those nobody else takes part in. A file is the company's when its owner's address
    is in the mail domain of the account.
    """
    mail, calendar, drive = environment["inbox"], environment["calendar"], environment["cloud_drive"]
    me = mail["account_email"]
    sent = [message for message in mail["emails"].values() if message["sender"] == me]
    written_to = {address for message in sent for field in ("recipients", "cc", "bcc") for address in message[field]}
    files = drive["files"]
    owned = {file_id: entry for file_id, entry in files.items() if entry["owner"] == me}
    given_to = {address for entry in owned.values() for address in entry["shared_with"]}
    lent_by = {entry["owner"] for entry in files.values() if entry["shared_with"].get(me) == "rw"}
    confirmed = [event for event in calendar["events"].values() if event["status"] == "confirmed"]
    correspondents = (written_to | given_to) - {me}
    tags = _entity('Drive::"drive"', {}, {file_id: _file_tag(entry, me) for file_id, entry in files.items()})
    attributes = {
        "correspondents": _sorted(correspondents),
        "invitees": _sorted(correspondents | {me} | {who for event in confirmed for who in event["participants"]}),
        "collaborators": _sorted((given_to | lent_by) - {me}),
        "events": _sorted(event["id_"] for event in confirmed),
        "own_events": _sorted(event["id_"] for event in confirmed if event["participants"] == [me]),
        "attachable": [{"type": "file", "file_id": file_id} for file_id in _sorted(owned)],
        "drive": {"__entity": tags["uid"]},
    }
    return _WORKSPACE, "owner", [_entity('User::"owner"', attributes), tags]


def _file_tag(entry: JsonObject, me: str) -> JsonObject:
    domain = me.partition("@")[2]
    return {
        "owned": entry["owner"] == me,
        "company": entry["owner"].partition("@")[2] == domain,
        "writable": entry["owner"] == me or entry["shared_with"].get(me) == "rw",
    }
