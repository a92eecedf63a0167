package broker

import (
	"bytes"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
)

// login returns what tells the server who is there, and the client whom to
// believe. Files are looked at now, so that a wrong name is told at once.
func (o Options) login() ([]nats.Option, error) {
	var options []nats.Option
	if o.CredentialsFile != "" {
		credentials, err := credentials(o.CredentialsFile)
		if err != nil {
			return nil, fmt.Errorf("credentials: %w; set broker.credentials to a readable .creds file or nkey seed", err)
		}
		options = append(options, credentials)
	}
	if o.User != "" {
		options = append(options, nats.UserInfo(o.User, o.Password))
	}
	if o.Token != "" {
		options = append(options, nats.Token(o.Token))
	}
	if o.TLSFirst {
		options = append(options, nats.TLSHandshakeFirst())
	}
	if o.CAFile != "" {
		options = append(options, nats.RootCAs(o.CAFile))
	}
	if o.CertificateFile != "" {
		options = append(options, nats.ClientCert(o.CertificateFile, o.KeyFile))
	}
	if o.InboxPrefix != "" {
		options = append(options, nats.CustomInboxPrefix(o.InboxPrefix))
	}
	return options, nil
}

// credentials reads a file of either kind: with a JWT, for servers that trust an
// operator, or a seed alone, for servers that list their users.
func credentials(path string) (nats.Option, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if bytes.Contains(data, []byte("NATS USER JWT")) {
		return nats.UserCredentials(path), nil
	}
	option, err := nats.NkeyOptionFromSeed(path)
	if err != nil {
		return nil, fmt.Errorf("%s: neither a JWT nor an nkey seed: %w", path, err)
	}
	return option, nil
}
