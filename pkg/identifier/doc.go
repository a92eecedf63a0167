// Package identifier turns what a source holds as a phone number or an e-mail
// address into the one form that is sent, or says why it cannot be sent.
//
// A phone number becomes E.164 exactly when libphonenumber finds it valid, and
// with the digits that libphonenumber finds; numbers of the North American plan
// in usual notations take a shorter way to the same verdict. Two kinds of numbers
// that the library accepts are refused here, because a message sent to them
// would reach somebody by a guess: those with an extension, and those spelled
// with letters.
//
// An e-mail address is checked against the limits of RFC 5321 and written in lower
// case, a domain of another script in its ASCII form. Nothing is looked up: a
// number or address that passes may still belong to nobody.
//
// Everything here may be used by several goroutines at once.
package identifier

// Reject says why a value is no identifier. The list is closed, so that it can
// label a metric. The empty Reject means that the value was accepted.
type Reject string

const (
	// Missing is an empty value, or one of nothing but white space.
	Missing Reject = "missing"
	// PhoneInvalid is no number that the numbering plan of its country knows.
	PhoneInvalid Reject = "phone_invalid"
	// PhoneExtension is a valid number with an extension.
	PhoneExtension Reject = "phone_extension"
	// PhoneVanity is a valid number spelled with letters.
	PhoneVanity Reject = "phone_vanity"
	// EmailInvalid is not of the form local-part@domain.
	EmailInvalid Reject = "email_invalid"
	// EmailTooLong passes a limit of RFC 5321: 64 bytes before the "@", 254 in all.
	EmailTooLong Reject = "email_too_long"
	// EmailQuoted has a quoted local part.
	EmailQuoted Reject = "email_quoted"
	// EmailNotASCII has characters beyond ASCII before the "@", or is not UTF-8.
	EmailNotASCII Reject = "email_not_ascii"
)

// Rejects lists every reason, for labels.
func Rejects() []Reject {
	return []Reject{
		Missing, PhoneInvalid, PhoneExtension, PhoneVanity,
		EmailInvalid, EmailTooLong, EmailQuoted, EmailNotASCII,
	}
}
