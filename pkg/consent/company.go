package consent

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// companyKey is where it lies which company an account reaches. No hash is called
// that.
func companyKey(account string) string { return "company." + account }

// Company returns the company that an account reaches, or "" when nobody has
// remembered it.
func (l *Ledger) Company(ctx context.Context, account string) (string, error) {
	entry, err := l.kv.Get(ctx, companyKey(account))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the company of %s from %s: %w", account, l.kv.Bucket(), err)
	}
	return string(entry.Value()), nil
}

// Remember keeps which company an account reaches. An account is one API key,
// which never reaches another one.
func (l *Ledger) Remember(ctx context.Context, account, company string) error {
	if _, err := l.kv.PutString(ctx, companyKey(account), company); err != nil {
		return fmt.Errorf("write the company of %s to %s: %w", account, l.kv.Bucket(), err)
	}
	return nil
}
