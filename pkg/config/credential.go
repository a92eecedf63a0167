package config

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The types of credentials.
const (
	// TypeSFTP logs in to Attentive's SFTP server.
	TypeSFTP = "attentive-mobile"
	// TypeAPI calls Attentive's API.
	TypeAPI = "attentive-api"
)

// Credential is a way to log in.
type Credential struct {
	// ID is unique: 1 to 32 of a-z, 0-9 and hyphen.
	ID string
	// Name is for people. Default: the id.
	Name string
	// Type is TypeSFTP or TypeAPI.
	Type string
	// SFTP is set for TypeSFTP, else nil.
	SFTP *SFTPCredential
	// API is set for TypeAPI, else nil.
	API *APICredential

	account string
}

// SFTPCredential logs in to an SFTP server.
type SFTPCredential struct {
	// Hostname or address. Default sftp.attentivemobile.com.
	Hostname string
	// Port, 1 to 65535. Default 22.
	Port int
	// Username to log in as.
	Username string
	// Passphrase (the password) and PrivateKey: at least one is set.
	Passphrase Secret
	PrivateKey Secret
	// PrivateKeyPassphrase is set when the private key is encrypted.
	PrivateKeyPassphrase Secret
	// HostKeys that the server may show, each "type base64". Either these or
	// KnownHosts is set; a host that shows any other key is refused.
	HostKeys []string
	// KnownHosts is the path of a file in OpenSSH's known_hosts format.
	KnownHosts string
	// Sessions is the most SFTP connections at one time, 1 to 16. Default 2.
	Sessions int
}

// Address returns host:port, to dial.
func (c SFTPCredential) Address() string {
	return net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port))
}

// APICredential calls the API.
type APICredential struct {
	// Key is sent as the bearer token.
	Key Secret
	// BaseURL without a slash at the end. Default https://api.attentivemobile.com.
	BaseURL string
	// Ceilings are the most calls per second.
	Ceilings Ceilings
	// Jitter is by how much longer than others a call may take to get to the API
	// without the limit being passed there. Default 5 ms, from 1 ms to 500 ms.
	Jitter time.Duration
}

// maxCeiling of an endpoint: more than one process can call.
const maxCeiling = 100_000

// Ceilings are calls per second by endpoint, 1 to 100,000. The published limits
// are the default.
type Ceilings struct {
	Attributes, Subscribe, Unsubscribe int
	// Bulk are calls that send attributes in batches, BulkStatus those that ask what
	// became of a batch.
	Bulk, BulkStatus int
}

// publishedCeilings are Attentive's published limits (API rate limits).
var publishedCeilings = Ceilings{Attributes: 150, Subscribe: 10, Unsubscribe: 5, Bulk: 100, BulkStatus: 100}

// Account names what the credential logs in to, so that two credentials of one
// account have one name: for SFTP by host, port and user, for the API by base
// URL and key. The name holds only letters, digits and a hyphen, and reveals
// none of these.
//
// An API key is read when the file is; the name does not change after that. A
// key that could not be read then makes a name of the credential's own; Watch
// reads the configuration again when the key's file changes.
func (c Credential) Account() string { return c.account }

// APIKey returns the API key as it is now, if that is the key that Account names.
// Of another one limits and people are another account's, which is worked once the
// configuration has been read again: until then the error is Blocked with reason
// SecretMissing, for the account, as it is when the key cannot be read.
func (c Credential) APIKey() (string, error) {
	key, err := c.API.Key.Value()
	if err != nil {
		return "", err
	}
	if accountName("api", "key", sameURL(c.API.BaseURL), key) != c.account {
		return "", missing("the API key of credential %s was exchanged: it is used when the configuration has been read again, "+
			"within seconds unless that has faults; the log names them", c.ID)
	}
	return key, nil
}

// computeAccount makes the name that Account returns.
func (c Credential) computeAccount() string {
	switch {
	case c.SFTP != nil:
		return accountName("sftp", host(c.SFTP.Hostname), strconv.Itoa(c.SFTP.Port), c.SFTP.Username)
	case c.API != nil:
		key, err := c.API.Key.Value()
		if err != nil {
			return accountName("api", "unread", c.ID)
		}
		return accountName("api", "key", sameURL(c.API.BaseURL), key)
	}
	return ""
}

// accountName hashes the parts. The hash is keyed so that it cannot be looked up
// in a table made for another purpose.
func accountName(kind string, parts ...string) string {
	mac := hmac.New(sha256.New, []byte("attentive-relay account 1"))
	for _, part := range parts {
		mac.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	return kind + "-" + hex.EncodeToString(mac.Sum(nil)[:16])
}

func host(name string) string { return strings.ToLower(name) }

// sameURL returns one writing of all URLs that reach the same server.
func sameURL(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(host(u.Hostname()), port) + u.EscapedPath()
}

// Account is what credentials log in to, with all that works through it.
type Account struct {
	// Key is the Account of each of the credentials.
	Key string
	// Credentials that destinations of the account use, at least one.
	Credentials []Credential
	// Destinations, at least one, in file order.
	Destinations []Destination
}

// Ceilings returns the lowest ceilings of the account's credentials.
func (a Account) Ceilings() Ceilings {
	lowest, known := publishedCeilings, false
	for _, c := range a.Credentials {
		if c.API == nil {
			continue
		}
		if !known {
			lowest, known = c.API.Ceilings, true
		}
		lowest.Attributes = min(lowest.Attributes, c.API.Ceilings.Attributes)
		lowest.Subscribe = min(lowest.Subscribe, c.API.Ceilings.Subscribe)
		lowest.Unsubscribe = min(lowest.Unsubscribe, c.API.Ceilings.Unsubscribe)
		lowest.Bulk = min(lowest.Bulk, c.API.Ceilings.Bulk)
		lowest.BulkStatus = min(lowest.BulkStatus, c.API.Ceilings.BulkStatus)
	}
	return lowest
}

// Jitter returns the longest jitter of the account's credentials.
func (a Account) Jitter() (longest time.Duration) {
	for _, c := range a.Credentials {
		if c.API != nil {
			longest = max(longest, c.API.Jitter)
		}
	}
	return longest
}

// Sessions returns the lowest number of SFTP sessions of the account's
// credentials, at least 1.
func (a Account) Sessions() int {
	var all []int
	for _, c := range a.Credentials {
		if c.SFTP != nil {
			all = append(all, c.SFTP.Sessions)
		}
	}
	if len(all) == 0 {
		return 1
	}
	return slices.Min(all)
}
