package cli

import (
	"context"
	"os"
	"os/user"

	"github.com/spf13/pflag"

	"attentive.internal/pkg/audit"
	"attentive.internal/pkg/broker"
)

// operator is who acts, for the record.
type operator struct{ name string }

func (o *operator) flags(f *pflag.FlagSet) {
	f.StringVar(&o.name, "as", "", "who you are, for the record (default: user@host)")
}

func (o *operator) who() string {
	if o.name != "" {
		return o.name
	}
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// act records an action, does it, and records how it ended.
func (o *operator) act(ctx context.Context, conn *broker.Conn, a audit.Action, do func() (string, error)) error {
	a.Who = o.who()
	return audit.Do(ctx, conn, a, do)
}
