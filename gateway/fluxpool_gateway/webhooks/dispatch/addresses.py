"""Which addresses webhooks are sent to: public ones, and those that the settings allow. Pure.

An address that carries another one (IPv4-mapped, NAT64) is judged by that one. By the registries of special-purpose
addresses: https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REFUSED: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            # Metadata and DNS of virtual machines on Azure: a public address that each host answers itself.
            "168.63.129.16/32",
            # Teredo, ORCHID and others; documentation; 6to4, whose IPv4 address a relay of any network reaches.
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""All that is assigned for it; loopback, link-local, unique local and multicast addresses lie outside."""
_NAT64: Final = IPv6Network("64:ff9b::/96")


def refusal_of(text: str, allowed: Collection[Network]) -> str | None:
    """Why nothing is sent to an address, as text of a resolver or URL has it; None when it may be."""
    # A zone, as in fe80::1%eth0, is not part of the address.
    address = _carried(ip_address(text.partition("%")[0]))
    if any(address in network for network in allowed):
        return None
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return f"{text} is not a public address"
    if any(address in network for network in _REFUSED):
        return f"{text} is not a public address"
    return None


def is_address(host: str) -> bool:
    """Whether a host is an address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
